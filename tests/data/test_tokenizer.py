"""How tokenizers are found on disk."""

import json

import pytest
from hub_folders import make_golden_folder, write_folder

from data import tokenizer_training
from data.config import TokenizerConfig
from data.schema import DataError
from data.tokenizer import (
    HubTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

TOKENIZER = train_tokenizer(["The capital of Kenya is Nairobi."] * 4, TokenizerConfig(vocab_size=300))


def test_each_kind_of_path_gives_its_own_kind(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path / "ours")
    (tmp_path / "hub").mkdir()
    write_folder(tmp_path / "hub", make_golden_folder("qwen3"))
    hub = load_tokenizer(tmp_path / "hub")
    save_tokenizer(hub, tmp_path / "saved")
    assert isinstance(load_tokenizer(tmp_path / "ours"), SentencePieceTokenizer)
    assert load_tokenizer(tmp_path / "ours" / "tokenizer.model") == TOKENIZER
    assert isinstance(hub, HubTokenizer)
    assert load_tokenizer(tmp_path / "hub" / "tokenizer.json") == load_tokenizer(tmp_path / "saved") == hub
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["polytune_tokenizer.json", "tokenizer.model"]


def test_a_folder_from_before_hugging_face_tokenizers_is_still_read(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path)
    (tmp_path / "polytune_tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path) == TOKENIZER


def test_a_changed_tokenizer_folder_is_noticed(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path)
    file = tmp_path / "polytune_tokenizer.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps(table | {"bos_id": 2, "end_id": 1}))
    with pytest.raises(DataError, match="changed after it was saved"):
        load_tokenizer(tmp_path)
    file.write_text(json.dumps({key: value for key, value in table.items() if key != "role_ids"}))
    with pytest.raises(DataError, match=r"table is damaged .*role_ids"):
        load_tokenizer(tmp_path)
    for damaged in (json.dumps(table)[:-20], "[1]"):
        file.write_text(damaged)
        with pytest.raises(DataError, match=r"polytune_tokenizer\.json is damaged"):
            load_tokenizer(tmp_path)


def test_a_sentencepiece_model_alone_in_a_folder_is_not_taken_for_either_kind(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path)
    (tmp_path / "polytune_tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"needs polytune_tokenizer\.json.*it holds tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    for content in (b"not a model", TOKENIZER.model[: len(TOKENIZER.model) // 2]):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(DataError, match="no SentencePiece model"):
            load_tokenizer(tmp_path / "x.model")
    with pytest.raises(DataError, match=r"cannot read tokenizer file .*absent\.model"):
        load_tokenizer(tmp_path / "absent.model")


def test_more_text_than_fits_memory_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(tokenizer_training, "MOST_CHARACTERS", 10)
    with pytest.raises(DataError, match=r"more than 10 characters.*on a sample .* set tokenizer.path"):
        train_tokenizer(["abcdef", "ghijkl"], TokenizerConfig(vocab_size=300))
