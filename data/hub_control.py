"""Which tokens of a Hugging Face tokenizer are control tokens, which one pads, and a pipeline that gives neither."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import tokenizers

from data.hub_files import CONFIG_FILE
from data.schema import DataError

# Names of tokens that end a turn or a text: <|endoftext|>, <|im_end|>, <end_of_turn>, <eos>, </s>, <|eot_id|> ...
STOP_NAME = re.compile(r"end|eo[dmstu]|stop|</s>", re.IGNORECASE)
# Every first and every following byte of UTF-8: a vocabulary that can spell these characters can spell any text.
EVERY_BYTE = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 0x1000), *range(0x10000, 0x110000, 0x40000)]))


def find_control(
    pipeline: tokenizers.Tokenizer, *, template: str | None, unknown_id: int | None, ends: Collection[int | None]
) -> dict[str, int]:
    """Returns ids of control tokens by their spelling, in order of ids.

    They are the tokens marked special, and those the chat template writes, unless these come as a pair that marks up
    an answer, like `<think>` and `</think>`. An unknown token that text can give is none, if it is not one of the
    tokens that begin and end a text, `ends`.
    """
    added = pipeline.get_added_tokens_decoder()
    names = {token.content for token in added.values()}
    is_given = unknown_id not in ends and unknown_id in pipeline.encode(EVERY_BYTE, add_special_tokens=False).ids
    found = {}
    for token, flags in sorted(added.items()):
        name = flags.content
        is_written = name in (template or "") and not name.isspace() and not _is_paired(name, names)
        if (flags.special or is_written) and not (is_given and token == unknown_id):
            found[name] = token
    return found


def choose_pad(control_ids: Mapping[str, int], named: Mapping[str, str], template: str | None) -> str:
    """Returns the token that fills rows: its own pad token, unless that is the end of a text or looks like one.

    Else the first control token that has "pad" in its name, else is reserved or unused, else the unknown token, else
    any that the chat template does not write; never one that begins or ends a turn or text.
    Raises DataError if there is none.
    """
    own, unknown = named.get("pad_token"), named.get("unk_token")
    taken = (named.get("bos_token"), named.get("eos_token"))
    if own is not None and own not in taken and not STOP_NAME.search(own):
        return own
    spare = [
        name
        for name in control_ids
        if name not in taken and name not in (template or "") and not STOP_NAME.search(name)
    ]
    chosen = [name for name in spare if "pad" in name.lower()]
    chosen += [name for name in spare if re.search("reserved|unused", name, re.IGNORECASE)]
    chosen += [unknown] if unknown is not None and unknown not in taken else []
    chosen += spare
    if not chosen:
        raise DataError(
            f"no token can fill rows: pad_token is {own!r}, and every other control token has a use; name an unused "
            f"one as pad_token in {CONFIG_FILE}"
        )
    return chosen[0]


def hide_control(
    pipeline: tokenizers.Tokenizer, hidden: Collection[int]
) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
    """Returns a pipeline that does not know some tokens, and what its ids are in the first where they differ."""
    table = json.loads(pipeline.to_str())
    added = sorted(pipeline.get_added_tokens_decoder().items())
    table["added_tokens"] = []
    _hide(table["model"], {token.content for index, token in added if index in hidden})
    other = tokenizers.Tokenizer.from_str(json.dumps(table))
    kept = {token.content: index for index, token in added if index not in hidden}
    other.add_tokens([token for index, token in added if index not in hidden])
    return other, {token: kept[flags.content] for token, flags in other.get_added_tokens_decoder().items()}


def _hide(model: dict[str, Any], names: set[str]) -> None:
    """Makes pieces of a model unreachable: no merge gives them, no text spells them."""
    if model["type"] == "BPE":
        model["merges"] = [merge for merge in model["merges"] if names.isdisjoint((*merge, "".join(merge)))]
        # The unknown token is found by its name.
        names = names - {model.get("unk_token")}
        model["vocab"] = {_disguise(name, names): index for name, index in model["vocab"].items()}
    else:
        model["vocab"] = [[_disguise(name, names), score] for name, score in model["vocab"]]


def _disguise(name: str, names: Collection[str]) -> str:
    return f"\0{name}\0" if name in names else name


def _is_paired(name: str, names: Collection[str]) -> bool:
    return name[:1] + "/" + name[1:] in names or (name[1:2] == "/" and name[:1] + name[2:] in names)
