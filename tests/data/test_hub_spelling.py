"""Ids that spell a text say where they stand exactly as the pipeline's own offsets do, and keep silent where they do
not spell it."""

import numpy as np
import pytest
from hub_folders import make_golden_folder, write_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, processors

from data.hub_spelling import locate_ids
from data.reading import _collect, _read_text, make_reader
from data.tokenizer import load_tokenizer

PIECES = [
    "a",
    "hello",
    " ",
    "  ",
    "\n",
    "\t",
    "é",
    "e\u0301",
    "का",
    "中文",
    "😀",
    "<|im_start|>",
    "<|im_end|>",
    "1",
    "ß",
]
texts = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    found = {}
    for kind, trims in (("qwen3", False), ("olmo2", False), ("olmo2", True), ("llama", False)):
        folder = tmp_path_factory.mktemp("tokenizer")
        write_folder(folder, make_golden_folder(kind))
        tokenizer = load_tokenizer(folder)
        if trims:
            tokenizer._pipeline.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
        found[kind, trims] = make_reader(tokenizer)
    return found


@given(kind=st.sampled_from([("qwen3", False), ("olmo2", False), ("olmo2", True), ("llama", False)]), text=texts)
def test_ids_say_where_they_stand_as_the_offsets_of_the_pipeline_do(readers, kind, text):
    reader = readers[kind]
    expected = _collect(reader, *reader.tokenizer.encode_rendered_offsets(text))
    for found, wanted in zip(_read_text(reader, text), expected, strict=True):
        assert found.dtype.kind == wanted.dtype.kind
        assert found.tolist() == wanted.tolist()


def test_the_bytes_of_one_character_share_its_place(readers):
    reader = readers["olmo2", False]
    ids = reader.tokenizer.encode_rendered("a😀b")
    assert len(ids) == 6
    starts, ends = locate_ids(reader.spelling, np.array(ids), "a😀b")
    assert (starts.tolist(), ends.tolist()) == ([0, 1, 1, 1, 1, 2], [1, 2, 2, 2, 2, 3])


def test_a_text_that_the_pipeline_rewrites_is_left_to_its_offsets(readers):
    reader = readers["qwen3", False]
    assert isinstance(reader.tokenizer._pipeline.normalizer, normalizers.NFC)
    composed, decomposed = (reader.tokenizer.encode_rendered(text) for text in ("\u00e9", "e\u0301"))
    assert composed == decomposed
    assert locate_ids(reader.spelling, np.array(composed), "\u00e9") is not None
    assert locate_ids(reader.spelling, np.array(decomposed), "e\u0301") is None


def test_a_pipeline_that_is_not_byte_level_or_adds_a_space_to_every_text_has_no_spelling(readers, tmp_path):
    assert readers["llama", False].spelling is None
    folder = make_golden_folder("olmo2")
    folder.pipeline.normalizer = normalizers.Prepend(" ")
    write_folder(tmp_path, folder)
    assert load_tokenizer(tmp_path).spelling is None
