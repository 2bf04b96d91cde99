"""Training SentencePiece tokenizers on the texts of a recipe."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from data.config import TokenizerConfig
from data.schema import DataError
from data.sentencepiece_tokenizer import BOS, END, PAD, ROLE_PIECES, UNKNOWN, SentencePieceTokenizer, add_control_ids

# The trainer drops a whole sentence that holds NUL or U+2585, and makes no piece of tabs or line ends; they
# only separate training text. In encoding they are bytes.
TRAINING_BREAKS = re.compile("[\0\t\n\r\u2585]+")
TRAINING_LINE = 2000
"""Characters; the trainer counts positions inside a word in 16 bits."""
MOST_CHARACTERS = 1 << 29
"""Of all texts together: the trainer holds them in memory, several times over."""


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> SentencePieceTokenizer:
    """Returns a byte-pair tokenizer trained on texts: the same texts in the same order give the same bytes.

    Its `vocab_size` is smaller than `config.vocab_size` where the texts hold too few distinct pairs.
    Raises DataError if there is no text, too much of it, or more distinct characters than the vocabulary has room for.
    """
    lines = list(_training_lines(texts))
    if not lines:
        raise DataError("no text to train a tokenizer on: the sources gave none; check them, or set tokenizer.path")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            max_sentence_length=5 * TRAINING_LINE,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD,
            bos_piece=BOS,
            eos_piece=END,
            unk_piece=UNKNOWN,
            control_symbols=list(ROLE_PIECES.values()),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_explain_training(error, config)) from None
    return add_control_ids(model.getvalue())


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    characters = 0
    for text in texts:
        characters += len(text)
        if characters > MOST_CHARACTERS:
            raise DataError(
                f"the sources hold more than {MOST_CHARACTERS:,} characters, too much to train a tokenizer on in "
                "memory; train one on a sample (`limit` of the sources, in a recipe of its own) and set tokenizer.path"
            )
        for line in TRAINING_BREAKS.split(text):
            for start in range(0, len(line), TRAINING_LINE):
                yield line[start : start + TRAINING_LINE]


def _explain_training(error: RuntimeError, config: TokenizerConfig) -> str:
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return (
            f"tokenizer.vocab_size {config.vocab_size} is too small: control tokens, 256 bytes and the "
            f"characters of the texts need {needed[1]} at character_coverage {config.character_coverage}; "
            f"raise the first or lower the second (the rest become bytes)"
        )
    return f"SentencePiece could not train a tokenizer of {config.vocab_size} pieces: {error}"
