"""Which tokens are unknown, and which spell bytes, for every kind of tokenizer."""

import hub_folders
import numpy as np
import pytest
from fake_tokenizer import FakeTokenizer

from data.config import TokenizerConfig
from data.schema import DataError
from data.token_kinds import BYTES, UNKNOWN, find_kinds
from data.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(["aaa bbb abab", "habari ya asubuhi"] * 50, TokenizerConfig(vocab_size=300))


@pytest.fixture
def folder(tmp_path):
    def make(kind):
        (tmp_path / kind).mkdir()
        hub_folders.write_folder(tmp_path / kind, hub_folders.make_golden_folder(kind))
        return load_tokenizer(tmp_path / kind)

    return make


def test_the_byte_pieces_of_sentencepiece(trained):
    kinds = find_kinds(trained)
    assert (kinds.has_unknown, kinds.byte_kind) == (True, "pieces")
    assert (kinds.kind_V == BYTES).sum() == 256 and (kinds.kind_V == UNKNOWN).sum() == 1
    assert kinds.kind_V[trained.encode("ж")].tolist()[-2:] == [BYTES, BYTES]
    assert BYTES not in kinds.kind_V[trained.encode("aaa")]


def test_a_byte_level_token_that_is_no_whole_character_is_spelled_in_bytes(folder):
    tokenizer = folder("qwen3")
    kinds = find_kinds(tokenizer)
    assert (kinds.has_unknown, kinds.byte_kind) == (False, "partial")
    assert len(kinds.kind_V) == tokenizer.vocab_size
    # é is two bytes and has no token of its own; "hello" does.
    assert kinds.kind_V[tokenizer.encode("é")].tolist() == [BYTES, BYTES]
    assert kinds.kind_V[tokenizer.encode("hello \n")].tolist() == [0, 0, 0]
    # 128 bytes are ASCII; the other 128, and the merge of two bytes of Devanagari, are no text.
    assert (kinds.kind_V == BYTES).sum() == 129
    assert not kinds.kind_V[sorted(tokenizer.control_ids.values())].any()


def test_byte_pieces_of_a_hugging_face_folder(folder):
    tokenizer = folder("llama")
    kinds = find_kinds(tokenizer)
    assert kinds.byte_kind == "pieces" and (kinds.kind_V == BYTES).sum() == 256
    assert kinds.kind_V[tokenizer.encode("ж")].tolist()[-2:] == [BYTES, BYTES]


def test_the_unknown_token_of_a_vocabulary_without_bytes(folder):
    tokenizer = folder("unigram")
    kinds = find_kinds(tokenizer)
    assert (kinds.has_unknown, kinds.byte_kind) == (True, "none")
    assert kinds.kind_V[tokenizer.encode("ж")].tolist()[-1] == UNKNOWN
    assert UNKNOWN not in kinds.kind_V[tokenizer.encode("hello")]


def test_a_tokenizer_that_is_none_from_disk_is_refused():
    with pytest.raises(DataError, match="FakeTokenizer; give a tokenizer from disk"):
        find_kinds(FakeTokenizer(("<bos>",)))


def test_kinds_are_small(trained):
    assert find_kinds(trained).kind_V.dtype == np.uint8
