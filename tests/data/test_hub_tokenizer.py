import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from golden_tokenizers import GOLDEN
from hub_folders import (
    TURNS,
    Folder,
    add_flagged,
    describe_added,
    make_golden_folder,
    spell_bytes,
    spell_pieces,
    spell_unigram,
    train_unigram,
    write_folder,
    write_pieces,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from data.config import TokenizerConfig
from data.hub_tokenizer import HubTokenizer, load_hub_tokenizer
from data.schema import DataError
from data.tokenizer import load_tokenizer, train_tokenizer

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n<think>{% endfor %}"
SPELLED = ["<s>", "</s>", "<unk>", *TURNS, "<think>", "</think>", "<tight>", "<a b>", "<0x41>", "hello", "\0", "▁"]
plain_text = st.text(st.characters(exclude_categories=["Cs"]))
any_text = plain_text | st.lists(st.sampled_from(SPELLED) | plain_text).map("".join)


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> dict[str, HubTokenizer]:
    tokenizers = {}
    for kind in GOLDEN:
        directory = tmp_path_factory.mktemp(kind)
        write_folder(directory, make_golden_folder(kind))
        tokenizers[kind] = load_hub_tokenizer(directory)
    return tokenizers


def _write(directory: Path, folder: Folder) -> HubTokenizer:
    write_folder(directory, folder)
    return load_hub_tokenizer(directory)


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("kind", list(GOLDEN))
def test_ids_are_the_golden_ones_of_transformers(kind, golden):
    assert {text: golden[kind].encode_rendered(text) for text in GOLDEN[kind]} == GOLDEN[kind]


def test_special_ids_and_names_come_from_the_configuration_and_the_class(golden):
    qwen, cohere, llama = golden["qwen3"], golden["cohere2"], golden["llama"]
    assert qwen.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert (qwen.bos_id, qwen.eos_id, qwen.vocab_size) == (None, 266, 272)
    assert (cohere.bos_id, cohere.eos_id, cohere.pad_id) == (269, 270, 264)
    assert llama.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert (llama.bos_id, llama.eos_id, llama.pad_id) == (1, 2, 0)


@given(kind=st.sampled_from(list(GOLDEN)), text=any_text)
def test_text_never_becomes_a_control_token(golden, kind, text):
    tokenizer = golden[kind]
    ids = tokenizer.encode(text)
    assert not any(map(tokenizer.is_control, ids))
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    rendered = tokenizer.encode_rendered(text)
    if not any(name in text for name in [*tokenizer.control_ids, "<unk>"]):
        assert ids == rendered
    assert tokenizer.encode_rendered_offsets(text)[0] == rendered
    if tokenizer.is_lossless:
        assert tokenizer.decode(ids) == text


def test_content_that_spells_a_control_token_stays_text(golden):
    qwen, llama, unigram = golden["qwen3"], golden["llama"], golden["unigram"]
    text = "x<|im_end|><think>y"
    assert qwen.decode(qwen.encode(text)) == text
    assert 266 not in qwen.encode(text) and 267 in qwen.encode(text)
    # In these two the vocabulary itself can put the piece together: by merges, by the best-scored path.
    assert llama._pipeline.model.tokenize("</s>")[0].id == 2
    assert (llama.encode("a</s>"), llama.encode_rendered("a</s>")) == ([281, 259, 292, 293], [281, 259, 2])
    assert llama.decode(llama.encode("a</s>")) == "a</s>"
    assert unigram._pipeline.model.tokenize("<s>")[0].id == 1
    assert unigram.decode(unigram.encode("a<s>")) == "a<s>"


def test_a_piece_that_continues_a_control_token_does_not_stand_in_the_way(tmp_path):
    folder = make_golden_folder("llama")
    table = json.loads(folder.pipeline.to_str())
    table["model"]["vocab"]["</s>s"] = len(table["model"]["vocab"])
    table["model"]["merges"].append(["</s>", "s"])
    table["model"]["vocab"] = dict(sorted(table["model"]["vocab"].items(), key=lambda item: item[1]))
    write_folder(tmp_path, folder._replace(pipeline=Tokenizer.from_str(json.dumps(table))))
    tokenizer = load_hub_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a</s>s")) == "a</s>s"


def test_unknown_is_a_control_token_only_where_no_text_gives_it(golden):
    assert golden["llama"].is_control(0)
    assert not golden["unigram"].is_control(0)
    assert golden["unigram"].encode("ñ") == [3, 0]
    assert golden["unigram"].encode("<unk>") == [3, 28, 21, 0, 30]


def test_spans_are_characters_of_the_text(golden):
    ids, spans = golden["qwen3"].encode_rendered_offsets("<|im_start|> hello😀")
    assert ids[:2] == [265, 260]
    assert spans == [(0, 12), (12, 18), *[(18, 19)] * 4]


@pytest.mark.parametrize(
    ("special", "tokens", "chosen"),
    [
        (["<|pad|>", "<eos>"], {"pad_token": "<|pad|>", "eos_token": "<eos>"}, "<|pad|>"),
        (["<eos>", "<free>", "<x_pad>"], {"pad_token": "<eos>", "eos_token": "<eos>"}, "<x_pad>"),
        (["<|endoftext|>", "<eos>", "<free>", "<|reserved_7|>"], {"pad_token": "<|endoftext|>"}, "<|reserved_7|>"),
        (["<eos>", "<free>", "<unk>"], {"eos_token": "<eos>", "unk_token": "<unk>"}, "<unk>"),
        (["<|im_start|>", "<|im_end|>", "<free>"], {"eos_token": "<|im_end|>"}, "<free>"),
        (["<bos>", "<s>"], {"bos_token": "<bos>", "eos_token": "<s>", "pad_token": "<s>"}, None),
    ],
)
def test_pad_never_ends_a_turn_or_a_text(special, tokens, chosen, tmp_path):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **tokens}
    write_folder(tmp_path, Folder(spell_bytes(special=special), config))
    if chosen is None:
        with pytest.raises(DataError, match="no token can fill rows: pad_token is '<s>'"):
            load_hub_tokenizer(tmp_path)
        return
    tokenizer = load_hub_tokenizer(tmp_path)
    assert tokenizer.control_ids[chosen] == tokenizer.pad_id != tokenizer.eos_id


def test_tokens_of_the_template_are_control_tokens_even_if_not_marked_special(tmp_path):
    pipeline = spell_bytes(special=["<eos>", "<pad>"])
    pipeline.add_tokens(["<|User|>", "<think>", "</think>", "\n\n"])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    config["chat_template"] = "<|User|>{{ x }}<think>\n\n</think><eos>"
    tokenizer = _write(tmp_path, Folder(pipeline, config))
    assert tokenizer.control_ids == {"<eos>": 264, "<pad>": 265, "<|User|>": 266}
    assert tokenizer.encode_rendered("<|User|><think>") == [266, 267]
    assert tokenizer.decode(tokenizer.encode("<|User|><think>")) == "<|User|><think>"
    assert 266 not in tokenizer.encode("<|User|><think>") and 267 in tokenizer.encode("<|User|><think>")


@pytest.mark.parametrize("place", ["file", "key", "list"])
def test_the_chat_template_is_found_wherever_it_is_kept(place, tmp_path):
    folder = make_golden_folder("qwen3")
    if place == "key":
        folder.config["chat_template"] = TEMPLATE
    if place == "list":
        named = {"tool_use": "other", "default": TEMPLATE}
        folder.config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    write_folder(tmp_path, folder)
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert load_hub_tokenizer(tmp_path).chat_template == TEMPLATE


def test_saved_loaded_and_pickled_it_is_the_same_and_its_files_are_kept(tmp_path):
    folder = make_golden_folder("llama-legacy")
    write_folder(tmp_path, folder)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_bytes(b"\r\n{{ x }}")
    tokenizer = load_hub_tokenizer(tmp_path)
    tokenizer.encode("warm the caches </s>")
    tokenizer.save(tmp_path / "run")
    loaded, pickled = load_tokenizer(tmp_path / "run"), pickle.loads(pickle.dumps(tokenizer))
    assert loaded == pickled == tokenizer
    assert len({loaded, pickled, tokenizer}) == 1
    assert pickled.encode("</s>") == tokenizer.encode("</s>")
    # config.json stays with the model; what it decided does not get lost
    assert not (tmp_path / "run" / "config.json").exists()
    assert loaded.encode_rendered("</s>hello") == GOLDEN["llama-legacy"]["<s>hello</s>hello  world"][2:4]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (tmp_path / "run" / "additional_chat_templates" / "rag.jinja").read_bytes() == b"\r\n{{ x }}"


def test_the_hash_is_of_what_decides_ids(golden, tmp_path):
    hashes = {tokenizer.hash for tokenizer in golden.values()}
    assert len(hashes) == len(golden)
    base = _write(tmp_path, make_golden_folder("qwen3"))
    assert base.hash == golden["qwen3"].hash
    _edit(tmp_path / "tokenizer_config.json", chat_template="{{ other }}", model_max_length=7)
    assert load_hub_tokenizer(tmp_path).hash == base.hash
    _edit(tmp_path / "tokenizer_config.json", add_prefix_space=True)
    assert load_hub_tokenizer(tmp_path).hash != base.hash


def test_a_changed_saved_folder_is_noticed(golden, tmp_path):
    golden["qwen3"].save(tmp_path)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    table["model"]["merges"] = table["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match="changed after it was saved"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    _edit(tmp_path / "polytune_tokenizer.json", kind="other")
    with pytest.raises(DataError, match="kind 'other'"):
        load_tokenizer(tmp_path)


def test_a_lone_surrogate_is_refused_not_dropped(golden):
    for method in ("encode", "encode_rendered", "encode_rendered_offsets"):
        with pytest.raises(DataError, match="lone surrogate"):
            getattr(golden["qwen3"], method)("a\ud800")


def test_decode_skips_special_tokens_and_padded_rows_and_refuses_strangers(golden):
    qwen = golden["qwen3"]
    assert qwen.decode([265, 259, 267, 266, 264, 500]) == "hello<think>"
    assert qwen.decode([161]) == "\ufffd"
    with pytest.raises(DataError, match="cannot decode id -1"):
        qwen.decode([-1])


def test_added_tokens_may_come_from_their_own_file(tmp_path):
    model = train_tokenizer(["hello world"] * 4, TokenizerConfig(vocab_size=300)).model
    (tmp_path / "m.model").write_bytes(model)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>", "eos_token": "<end>", "unk_token": "<unk>"}
    size = load_tokenizer(tmp_path / "m.model").vocab_size
    write_pieces(tmp_path, tmp_path / "m.model", config, added_tokens={"<late>": size + 1, "<early>": size})
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, HubTokenizer)
    assert tokenizer.encode_rendered("<early><late><end>") == [size, size + 1, 2]
    assert tokenizer.control_ids["<assistant>"] == 6
    assert tokenizer.decode(tokenizer.encode("hello <late>")) == "hello <late>"


def test_files_that_contradict_each_other_are_refused(tmp_path):
    folder = make_golden_folder("qwen3")
    folder.config["added_tokens_decoder"]["900"] = folder.config["added_tokens_decoder"].pop("266")
    write_folder(tmp_path, folder)
    with pytest.raises(DataError, match=r"'<think>' is said to have id 267, but the vocabulary gives 266"):
        load_hub_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_special_tokens": True}, "sets split_special_tokens"),
        ({"tokenizer_class": "T5TokenizerFast"}, "tokenizer_class T5TokenizerFast: transformers splits text"),
        ({"tokenizer_class": "TheirTokenizer", "auto_map": {"AutoTokenizer": ["a.B", None]}}, "never run"),
        ({"eos_token": 7}, r"tokenizer_config\.json holds 7 where a token should be"),
        ({"chat_template": 7}, "chat_template in"),
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, "added_tokens_decoder in"),
        ({"added_tokens_decoder": {"3": "y"}}, "added_tokens_decoder in"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(changes, message, tmp_path):
    write_folder(tmp_path, make_golden_folder("unigram"))
    _edit(tmp_path / "tokenizer_config.json", **changes)
    with pytest.raises(DataError, match=message):
        load_hub_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "holds a WordPiece model"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}}, "dropout 0.1"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, r"tokenizer\.json cannot be read"),
        ({"model": {}}, "holds no model"),
        ({"pre_tokenizer": {"type": "New"}}, r"tokenizer\.json cannot be read"),
        ({"added_tokens": [{"content": "x"}]}, "no token with an id"),
    ],
)
def test_pipelines_that_cannot_be_used_are_named(changes, message, tmp_path):
    write_folder(tmp_path, make_golden_folder("unigram"))
    _edit(tmp_path / "tokenizer.json", **changes)
    with pytest.raises(DataError, match=message):
        load_hub_tokenizer(tmp_path)


def test_a_class_that_is_byte_pair_does_not_take_a_unigram_model(tmp_path):
    folder = Folder(spell_unigram(), {"tokenizer_class": "LlamaTokenizer"}, "llama")
    write_folder(tmp_path, folder)
    with pytest.raises(DataError, match="Unigram model, but LlamaTokenizer is byte-pair"):
        load_hub_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_damaged_files_are_named(name, tmp_path):
    write_folder(tmp_path, make_golden_folder("llama"))
    content = (tmp_path / name).read_bytes()
    for damaged in (content[:-3], b"[]", b"\xff"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{tmp_path}.*{name}"):
            load_hub_tokenizer(tmp_path)


def test_missing_files_are_listed(tmp_path):
    with pytest.raises(DataError, match="it holds nothing"):
        load_hub_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TheirTokenizer"}')
    with pytest.raises(DataError, match=r"TheirTokenizer needs tokenizer\.json, or the SentencePiece tokenizer\.model"):
        load_hub_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    with pytest.raises(DataError, match=r"tokenizer\.model is no SentencePiece model"):
        load_hub_tokenizer(tmp_path)


def test_a_byte_level_folder_misnamed_llama_is_read_as_it_is(tmp_path):
    config = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": TURNS[2], "legacy": True, "pad_token": "<pad>"}
    tokenizer = _write(tmp_path, Folder(spell_bytes(), config, "llama"))
    assert tokenizer.encode_rendered("hello hello") == [259, 260]


def test_a_trained_unigram_tokenizer_with_rare_characters_keeps_its_text(tmp_path):
    texts = ["hello world, " * 3, "a < b / c > s p d", "नमस्ते दुनिया", "你好世界"] * 5
    pipeline = add_flagged(train_unigram(texts, special=["<pad>", "</s>", "<unk>"], unknown="<unk>"))
    config = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizer"}
    config["added_tokens_decoder"] = describe_added(pipeline)
    tokenizer = _write(tmp_path, Folder(pipeline, config))
    assert tokenizer.decode(tokenizer.encode("hello </s> 世界<pad>")) == "hello </s> 世界<pad>"
    assert tokenizer.pad_id == pipeline.token_to_id("<pad>")


def test_flags_of_tokenizer_config_win_over_those_of_tokenizer_json(tmp_path):
    pipeline = spell_pieces()
    pipeline.add_tokens([AddedToken("<x>", special=False, lstrip=False)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    added = describe_added(pipeline)
    config["added_tokens_decoder"] = {key: value | {"lstrip": True, "special": True} for key, value in added.items()}
    tokenizer = _write(tmp_path, Folder(pipeline, config))
    token = pipeline.token_to_id("<x>")
    assert tokenizer.encode_rendered("a <x>")[-2:] == [259, token]
    assert tokenizer.is_control(token)
