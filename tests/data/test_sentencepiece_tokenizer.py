import dataclasses
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import TokenizerConfig
from data.schema import ROLES, DataError
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.tokenizer import load_tokenizer, train_tokenizer

TEXTS = [
    "The capital of Kenya is Nairobi. 12345 + 678 = 13023",
    "Mji mkuu wa Kenya ni Nairobi.\n\tNdiyo.",
    "肯尼亚的首都是内罗毕。",
    "عاصمة كينيا هي نيروبي",
    "केन्या की राजधानी नैरोबी है।",
] * 4
CONFIG = TokenizerConfig(vocab_size=600)
TOKENIZER = train_tokenizer(TEXTS, CONFIG)
CONTROL_TEXT = ["<pad>", "<bos>", "<end>", "<unk>", "<user>", "<assistant>", "</s>", "<0x41>"]
CONTROL_NAME = re.compile("|".join(TOKENIZER.control_ids))
HARD = [
    "",
    " ",
    "   ",
    "  a  b ",
    "\0",
    "a\0b",
    "\t\n\r\n",
    "\u2581",
    "\u2581a \u2581\u2581",
    "⁇",
    "\u2585",
    "\ufeffx",
]
any_text = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*CONTROL_TEXT, *HARD, *TEXTS, "e\u0301", "ﬁ①", "\u200d", "\U0010ffff", "\u2028"])
).map("".join)


@given(any_text)
def test_no_text_is_ever_lost_or_becomes_a_control_token(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not any(TOKENIZER.is_control(token) for token in ids)
    assert all(0 <= token < TOKENIZER.vocab_size for token in ids)


@pytest.mark.parametrize("text", [*HARD, *CONTROL_TEXT])
def test_hard_strings_come_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_a_lone_surrogate_is_refused_not_dropped():
    for text in ("\ud800", "a\u2581\udfff"):
        with pytest.raises(DataError, match="lone surrogate"):
            TOKENIZER.encode(text)


@given(any_text)
def test_a_rendered_text_is_its_content_between_its_control_tokens(text):
    ids, spans = TOKENIZER.encode_rendered_offsets(text)
    assert ids == TOKENIZER.encode_rendered(text)
    if not any(name in text for name in TOKENIZER.control_ids):
        assert ids == TOKENIZER.encode(text)
    controls = {token: name for name, token in TOKENIZER.control_ids.items()}
    assert "".join(controls.get(token, "") for token in ids) == "".join(CONTROL_NAME.findall(text))
    # The spans tile the text: what ids with one span spell is what stands there.
    covered = 0
    for span in dict.fromkeys(spans):
        part = [token for token, other in zip(ids, spans, strict=True) if other == span]
        spelled = controls[part[0]] if part[0] in controls else TOKENIZER.decode(part)
        assert (span[0], text[slice(*span)]) == (covered, spelled)
        covered = span[1]
    assert covered == len(text)


def test_spans_of_bytes_are_their_character_and_controls_are_found_longest_first():
    ids, spans = TOKENIZER.encode_rendered_offsets("<bos><user>a\u2581😀<end>")
    assert ids[:2] == [1, 5]
    assert spans == [(0, 5), (5, 11), (11, 12), *[(12, 13)] * 3, *[(13, 14)] * 4, (14, 19)]
    assert TOKENIZER.encode_rendered("<unk><pad></s>") == [*TOKENIZER.encode("<unk>"), 0, *TOKENIZER.encode("</s>")]


def test_names_of_templates_are_the_spelled_control_tokens():
    names = {"<pad>": 0, "<bos>": 1, "<end>": 2, "<system>": 4, "<user>": 5, "<assistant>": 6, "<tool>": 7}
    assert TOKENIZER.control_ids == names
    assert TOKENIZER.special_tokens == {"bos_token": "<bos>", "eos_token": "<end>", "pad_token": "<pad>"}
    assert (TOKENIZER.eos_id, TOKENIZER.chat_template) == (2, None)


def test_control_ids_are_the_documented_ones_and_pad_is_never_end_of_turn():
    assert (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.end_id) == (0, 1, 2)
    assert TOKENIZER.role_ids == {"system": 4, "user": 5, "assistant": 6, "tool": 7}
    assert [token for token in range(TOKENIZER.vocab_size) if TOKENIZER.is_control(token)] == [
        0,
        1,
        2,
        4,
        5,
        6,
        7,
    ]
    with pytest.raises(DataError, match="<pad> and <end> share id 2"):
        dataclasses.replace(TOKENIZER, pad_id=2)


def test_a_control_id_must_not_be_a_piece_that_text_can_spell():
    with pytest.raises(DataError, match="text can spell"):
        dataclasses.replace(TOKENIZER, end_id=300)


def test_decode_skips_control_ids_replaces_broken_bytes_and_refuses_strangers():
    ids = TOKENIZER.encode("Nairobi")
    assert TOKENIZER.decode([1, 6, *ids, 2, 0]) == "Nairobi"
    assert TOKENIZER.decode([*ids, *TOKENIZER.encode("\u2581")[:2]]) == "Nairobi\ufffd"
    with pytest.raises(DataError, match="ids run from 0"):
        TOKENIZER.decode([TOKENIZER.vocab_size])


def test_digits_stand_alone_so_numbers_compose():
    assert len(TOKENIZER.encode("13023")) == 5


def test_training_is_the_same_in_another_process():
    code = (
        "import tests.data.test_sentencepiece_tokenizer as t; from data.tokenizer import train_tokenizer; "
        "print(train_tokenizer(t.TEXTS, t.CONFIG).hash)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    other = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True)
    assert other.stdout.decode().strip() == TOKENIZER.hash
    assert train_tokenizer(iter(TEXTS), CONFIG) == TOKENIZER


def test_training_drops_no_text_for_its_length_or_for_one_character():
    # SentencePiece on its own leaves out sentences over 4,192 bytes and any that hold NUL or U+2585.
    words = [f"zebra{mark}zebra " for mark in ("\0", "\u2585", "\t", "\n")]
    for text in ("zebra " * 20_000, "zebra" * 20_000, "".join(words) * 50):
        tokenizer = train_tokenizer([text], TokenizerConfig(vocab_size=400))
        assert len(tokenizer.encode("zebra")) == 1


def test_a_small_corpus_gives_the_true_vocabulary_size():
    tokenizer = train_tokenizer(["abc abc"], TokenizerConfig(vocab_size=5000))
    assert 264 < tokenizer.vocab_size < 300
    assert max(tokenizer.encode("abc abc")) < tokenizer.vocab_size


def test_impossible_training_says_what_to_change():
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer(["", "\n\0"], CONFIG)
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    with pytest.raises(DataError, match=r"vocab_size 300 is too small: .* need 764"):
        train_tokenizer([many], TokenizerConfig(vocab_size=300, character_coverage=1))


def test_saved_loaded_and_pickled_it_is_the_same(tmp_path):
    TOKENIZER.encode("warm the caches")
    TOKENIZER.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    pickled = pickle.loads(pickle.dumps(TOKENIZER))
    assert loaded == pickled == load_tokenizer(tmp_path / "tokenizer" / "tokenizer.model") == TOKENIZER
    assert {loaded.hash, pickled.hash} == {TOKENIZER.hash}
    assert pickled.encode(TEXTS[1]) == TOKENIZER.encode(TEXTS[1])


def test_the_hash_covers_the_control_ids():
    swapped = dataclasses.replace(TOKENIZER, bos_id=TOKENIZER.end_id, end_id=TOKENIZER.bos_id)
    assert swapped.hash != TOKENIZER.hash


@pytest.fixture
def foreign() -> Path:
    folder = os.environ.get("POLYTUNE_REALDATA")
    if not folder:
        pytest.skip("POLYTUNE_REALDATA is not set")
    return Path(folder) / "tokenizers"


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("file", "pieces", "fresh"),
    [
        ("t5_cc_all.32000.100extra.sentencepiece.model", 32101, 4),
        ("mistral-v3.32k.sentencepiece.model", 32768, 5),
        ("chinese_20k.sentencepiece.model", 20000, 5),
    ],
)
def test_a_foreign_model_gets_the_control_tokens_it_lacks(foreign, file, pieces, fresh):
    tokenizer = load_tokenizer(foreign / file)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.vocab_size == pieces + fresh
    assert sorted(tokenizer.role_ids) == sorted(ROLES)
    assert min(tokenizer.role_ids.values()) >= pieces
    assert len({tokenizer.pad_id, tokenizer.bos_id, tokenizer.end_id, *tokenizer.role_ids.values()}) == 7
    text = "Hello <user> world </s>."
    ids = tokenizer.encode(text)
    assert not any(map(tokenizer.is_control, ids))
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("Hello world"), tokenizer.end_id]) == "Hello world"
    assert not tokenizer.is_lossless


@given(any_text)
def test_places_from_the_lengths_of_pieces_are_those_the_library_gives(text):
    """A trained tokenizer loses nothing, so the fast way always can."""
    text = text.replace("\u2581", "")
    fast = TOKENIZER._place_by_length(text, TOKENIZER.encode(text))
    assert fast == TOKENIZER._place_by_proto(text)
