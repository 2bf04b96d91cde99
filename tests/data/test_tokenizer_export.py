import dataclasses
import json
from pathlib import Path

import pytest
from hub_folders import make_golden_folder, write_folder
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data.config import TokenizerConfig
from data.hub_tokenizer import HubTokenizer, load_hub_tokenizer
from data.schema import DataError
from data.tokenizer import SentencePieceTokenizer, load_tokenizer, train_tokenizer
from data.tokenizer_export import write_hub_tokenizer

TEXTS = [
    "The capital of Kenya is Nairobi. 12345 + 678 = 13023; aaaa aaa aaaaaa --- ----- ...",
    "Mji mkuu wa Kenya ni Nairobi.\n\tNdiyo.      Ndiyo.   ",
    "肯尼亚的首都是内罗毕。",
    "عاصمة كينيا هي نيروبي",
    "केन्या की राजधानी नैरोबी है।",
    "ประเทศไทย ไนโรบี",
] * 4
TOKENIZER = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=700))
ODD = [
    "\0",
    "\t",
    "\n",
    " ",
    "   ",
    "▁",
    "▁▁",
    "<0x41>",
    "<unk>",
    "e\u0301",
    "ﬁ",
    "👩\u200d👧",
    "\U0010ffff",
    "1",
    "23",
]
ODD += ["a", "aa", "-", ".", "   a", *TOKENIZER.control_ids, *TEXTS[:6]]
any_text = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(ODD)).map("".join)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> HubTokenizer:
    directory = tmp_path_factory.mktemp("exported")
    write_hub_tokenizer(TOKENIZER, directory, chat_template="{{ bos_token }}")
    return load_hub_tokenizer(directory)


@given(any_text)
def test_the_exported_tokenizer_gives_the_same_ids_and_the_text_back(exported, text):
    ids = TOKENIZER.encode(text)
    assert exported.encode(text) == ids
    assert exported.decode(ids) == text
    assert exported.encode_rendered_offsets(text) == TOKENIZER.encode_rendered_offsets(text)


def test_runs_of_one_character_merge_from_the_left_as_before(exported):
    for character in {character for text in TEXTS for character in text}:
        for length in range(1, 30):
            for text in (character * length, f"x{character * length}y"):
                assert exported.encode(text) == TOKENIZER.encode(text)


def test_a_text_ends_with_the_end_of_turn_and_pad_is_another(exported, tmp_path):
    assert (exported.bos_id, exported.eos_id, exported.pad_id) == (TOKENIZER.bos_id, TOKENIZER.end_id, TOKENIZER.pad_id)
    assert (exported.control_ids, exported.vocab_size) == (TOKENIZER.control_ids, TOKENIZER.vocab_size)
    assert exported.special_tokens == TOKENIZER.special_tokens
    assert exported.chat_template == "{{ bos_token }}"
    write_hub_tokenizer(TOKENIZER, tmp_path, chat_template=None)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["clean_up_tokenization_spaces"] is False
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_an_exported_tokenizer_is_loaded_as_hugging_faces_not_ours(exported, tmp_path):
    write_hub_tokenizer(TOKENIZER, tmp_path, chat_template=None)
    assert isinstance(load_tokenizer(tmp_path), HubTokenizer)


def test_a_hugging_face_tokenizer_is_written_back_byte_for_byte(tmp_path):
    folder = make_golden_folder("llama")
    folder.config["chat_template"] = "old\r\n"
    write_folder(tmp_path, folder)
    tokenizer = load_hub_tokenizer(tmp_path)
    for template, files in ((None, 0), ("old\r\n", 0), ("new", 1)):
        out = tmp_path / f"out-{template}".strip()
        write_hub_tokenizer(tokenizer, out, chat_template=template)
        written = {path.name: path.read_bytes() for path in out.iterdir()}
        assert len(written) == 3 + files
        # Another template takes the place of the old one, which some readers would go on using.
        replaced = {"tokenizer_config.json"} if files else set()
        for name in tokenizer.files.keys() - replaced:
            assert (tmp_path / name).read_bytes() == written[name]
        assert ("chat_template" in json.loads(written["tokenizer_config.json"])) is not bool(files)
        assert load_hub_tokenizer(out).chat_template == template or template is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unigram", "is no byte-pair model"),
        ("normalise", "normalises text"),
        ("bytes", "has no piece for every byte"),
        ("symbol", "has unused or user-defined pieces"),
    ],
)
def test_a_model_without_an_equal_form_is_refused_by_name(change, message, tmp_path):
    model = sentencepiece_model_pb2.ModelProto.FromString(TOKENIZER.model)
    if change == "unigram":
        model.trainer_spec.model_type = 1
    if change == "normalise":
        model.normalizer_spec.remove_extra_whitespaces = True
    if change == "bytes":
        model.trainer_spec.byte_fallback = False
        for piece in model.pieces:
            piece.type = 1 if piece.type == 6 else piece.type
    if change == "symbol":
        model.pieces[-1].type = 4
    tokenizer = dataclasses.replace(TOKENIZER, model=model.SerializeToString())
    with pytest.raises(DataError, match=message):
        write_hub_tokenizer(tokenizer, tmp_path / "out", chat_template=None)
    assert not (tmp_path / "out").exists()


def test_a_model_type_that_transformers_splits_its_own_way_is_refused(tmp_path):
    write_hub_tokenizer(TOKENIZER, tmp_path / "llama", chat_template=None, model_type="llama")
    write_hub_tokenizer(TOKENIZER, tmp_path / "qwen3", chat_template=None, model_type="qwen3")
    with pytest.raises(DataError, match="model type qwen2 as Qwen2Tokenizer"):
        write_hub_tokenizer(TOKENIZER, tmp_path / "qwen2", chat_template=None, model_type="qwen2")
    write_folder(tmp_path, make_golden_folder("mistral"))
    tokenizer = load_hub_tokenizer(tmp_path)
    write_hub_tokenizer(tokenizer, tmp_path / "mistral", chat_template=None, model_type="mistral")
    with pytest.raises(DataError, match="model type llama as LlamaTokenizer"):
        write_hub_tokenizer(tokenizer, tmp_path / "other", chat_template=None, model_type="llama")
    assert not (tmp_path / "qwen2").exists() and not (tmp_path / "other").exists()


def test_a_model_whose_scores_are_not_in_order_of_ids_keeps_its_ids(tmp_path):
    model = sentencepiece_model_pb2.ModelProto.FromString(TOKENIZER.model)
    merged = [piece for piece in model.pieces if piece.type == 1 and len(piece.piece) > 1]
    for piece, score in zip(merged, [piece.score for piece in merged][::-1], strict=True):
        piece.score = score
    tokenizer: SentencePieceTokenizer = dataclasses.replace(TOKENIZER, model=model.SerializeToString())
    assert tokenizer.encode(TEXTS[0]) != TOKENIZER.encode(TEXTS[0])
    write_hub_tokenizer(tokenizer, tmp_path, chat_template=None)
    exported = load_hub_tokenizer(tmp_path)
    assert [exported.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_a_model_that_puts_a_space_first_keeps_its_ids(tmp_path):
    model = sentencepiece_model_pb2.ModelProto.FromString(TOKENIZER.model)
    model.normalizer_spec.add_dummy_prefix = True
    (tmp_path / "x.model").write_bytes(model.SerializeToString())
    tokenizer = load_tokenizer(tmp_path / "x.model")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    write_hub_tokenizer(tokenizer, tmp_path / "out", chat_template=None)
    exported = load_hub_tokenizer(Path(tmp_path / "out"))
    for text in [*TEXTS, " a", "▁", "", "<user>Nairobi<end>"]:
        assert exported.encode_rendered(text) == tokenizer.encode_rendered(text)
        assert exported.decode(exported.encode(text)) == tokenizer.decode(tokenizer.encode(text))
