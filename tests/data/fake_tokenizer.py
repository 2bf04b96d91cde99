"""A tokenizer small enough to read its ids: control tokens, pairs that merge, and one id per character."""

import hashlib
import re

FIRST_CHARACTER = 1000
"""Id of U+0000."""


class FakeTokenizer:
    """Control tokens have ids from 0 in their order, pad last; merges from 500; characters from 1000."""

    is_lossless = True
    vocab_size = FIRST_CHARACTER + 0x110000

    def __init__(self, control, *, bos=None, eos=None, merges=(), chat_template=None):
        self.control_ids = {name: token for token, name in enumerate([*control, "<pad>"])}
        self.pad_id = self.control_ids["<pad>"]
        self.bos_id = self.control_ids.get(bos)
        self.eos_id = self.control_ids.get(eos)
        self.special_tokens = {
            name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token is not None
        }
        self.chat_template = chat_template
        self.merges = {pair: 500 + index for index, pair in enumerate(merges)}
        self.hash = hashlib.sha256(repr((control, merges)).encode()).hexdigest()

    def is_control(self, token):
        return token in self.control_ids.values()

    def encode(self, text):
        return [token for token, _ in self._read(text, list(self.merges))]

    def encode_rendered(self, text):
        return self.encode_rendered_offsets(text)[0]

    def encode_rendered_offsets(self, text):
        read = self._read(text, [*self.control_ids, *self.merges])
        return [token for token, _ in read], [span for _, span in read]

    def decode(self, ids):
        text = {token: pair for pair, token in self.merges.items()}
        return "".join(text.get(token) or chr(token - FIRST_CHARACTER) for token in ids if not self.is_control(token))

    def _read(self, text, names):
        pattern = "|".join([*map(re.escape, sorted(names, key=len, reverse=True)), "(?s:.)"])
        known = self.merges | {name: self.control_ids[name] for name in names if name in self.control_ids}
        return [
            (known.get(found[0], FIRST_CHARACTER + ord(found[0][0])), found.span())
            for found in re.finditer(pattern, text)
        ]
