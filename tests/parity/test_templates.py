"""Chat templates against transformers: 500 conversations in 20 languages for every template we ship."""

import functools
import random

import pytest

pytest.importorskip("transformers")

from hub_folders import LLAMA3_SPLIT, QWEN_SPLIT, Folder, train_bytes, train_metaspace, write_folder
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from data.chat import SHIPPED, list_templates, load_chat
from data.cldr import cldr_conversations
from data.schema import Conversation, DataError, Turn
from data.source_config import CldrSource
from data.template import JinjaTemplate
from data.tokenizer import load_tokenizer

LANGUAGES = (
    "am", "ar", "bn", "de", "el", "en", "fa", "he", "hi", "hy",
    "ja", "ka", "ko", "ru", "sw", "ta", "th", "uk", "vi", "zh",
)  # fmt: skip
CONVERSATIONS = 500
ODD = (
    "", " ", "\n", "\n\n", "  two spaces", "e\u0301\u0323", "👩🏽‍💻🇰🇪", "\u200b\u200d", "\u2067שלום\u2069", "\t",
    "\r\n", "1,234.5", "```py\nx = 1\n```", "{{ x }}", "<b>&amp;</b>", "'s", "ﬁ①ｶ", "\u3000全角", "\u0e33", "▁",
)  # fmt: skip
TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
COHERE = (
    "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
)  # fmt: skip
TAKES_TOOLS = ("alpaca", "chatml", "llama3", "plain", "qwen2_5", "qwen3", "zephyr")
FAMILIES = {
    "chatml": "qwen", "qwen2_5": "qwen", "qwen3": "qwen", "llama3": "llama3", "gemma": "gemma", "mistral": "mistral",
    "command_r": "cohere", "zephyr": "llama2", "alpaca": "llama2", "plain": "gpt2",
}  # fmt: skip


@functools.cache
def contents():
    """Texts by language, questions and answers alike."""
    found = {language: [] for language in LANGUAGES}
    for each in cldr_conversations(CldrSource(languages=LANGUAGES)):
        found[each.language] += [turn.content for turn in each.turns]
    return found


def make_folder(family):
    texts = [text for rows in contents().values() for text in rows[:60]]
    if family == "qwen":
        pipeline = train_bytes(texts, split=QWEN_SPLIT, nfc=True, special=TURNS)
        pipeline.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>", "<tool_response>")])
        config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": TURNS[2], "pad_token": TURNS[0]}
        return Folder(pipeline, config, "qwen3")
    if family == "llama3":
        pipeline = train_bytes(texts, split=LLAMA3_SPLIT, special=(*LLAMA3, "<|pad|>"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": LLAMA3[0], "eos_token": LLAMA3[4]}
        return Folder(pipeline, config | {"pad_token": "<|pad|>"}, "llama")
    if family == "gemma":
        special = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
        pipeline = train_metaspace(texts, special=special, gemma=True)
        pipeline.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("  ", normalized=False)])
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        return Folder(pipeline, {"tokenizer_class": "GemmaTokenizer", **names}, "gemma3_text")
    if family == "cohere":
        config = {"tokenizer_class": "CohereTokenizerFast", "bos_token": COHERE[0], "eos_token": COHERE[2]}
        special = ("<PAD>", "<UNK>", *COHERE)
        return Folder(train_bytes(texts, nfc=True, special=special), config | {"pad_token": "<PAD>"}, "cohere2")
    if family == "gpt2":
        config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": TURNS[0], "eos_token": TURNS[0]}
        return Folder(train_bytes(texts, special=(TURNS[0], "<|pad|>")), config | {"pad_token": "<|pad|>"}, "gpt2")
    special = ("<unk>", "<s>", "</s>", "<pad>", *(("[INST]", "[/INST]") if family == "mistral" else ()))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    legacy = family == "llama2"
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, **names}
    return Folder(train_metaspace(texts, special=special), config, "llama" if legacy else "mistral")


def make_conversation(draw, name, *, language):
    texts = contents()[language]

    def write():
        text = draw.choice(texts)
        if draw.random() < 0.5:
            text = draw.choice(ODD) + text + draw.choice(ODD)
        return text

    turns = [Turn("system", write())] if draw.random() < 0.5 else []
    for _ in range(draw.randint(1, 4)):
        turns.append(Turn("user", write()))
        if name in TAKES_TOOLS and draw.random() < 0.3:
            turns += [Turn("assistant", write()), *[Turn("tool", write())] * draw.randint(1, 2)]
        thought = f"<think>\n{write()}\n</think>\n\n" if name == "qwen3" and draw.random() < 0.5 else ""
        turns.append(Turn("assistant", thought + write()))
    return Conversation(turns=tuple(turns), language=language, source="generated")


def messages_of(turns):
    return [{"role": turn.role, "content": turn.content} for turn in turns]


@pytest.fixture(scope="module", params=list_templates())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    directory = tmp_path_factory.mktemp(name)
    write_folder(directory, make_folder(FAMILIES[name]))
    return directory


@pytest.fixture(scope="module")
def chat(name, folder):
    return load_chat(load_tokenizer(folder), name)


@pytest.fixture(scope="module")
def theirs(name, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.fixture(scope="module")
def conversations(name):
    draw = random.Random(name)
    return [make_conversation(draw, name, language=LANGUAGES[n % len(LANGUAGES)]) for n in range(CONVERSATIONS)]


def test_ids_are_those_of_transformers_for_conversations_and_prompts(name, chat, theirs, conversations):
    for each in conversations:
        expected = theirs.apply_chat_template(messages_of(each.turns), tokenize=True)["input_ids"]
        assert chat.encode_conversation(each).ids.tolist() == expected, each
        prompt = theirs.apply_chat_template(messages_of(each.turns[:-1]), add_generation_prompt=True)["input_ids"]
        assert chat.encode_prompt(each.turns[:-1]) == prompt, each


def test_what_is_trained_decodes_to_the_answers(name, chat, theirs, conversations):
    """In the reference's own decoding, so a span that is one id off is seen; space at the edges may merge."""
    for each in conversations:
        encoded = chat.encode_conversation(each)
        starts = [i for i, weight in enumerate(encoded.weights) if weight and not (i and encoded.weights[i - 1])]
        answers = [turn.content for turn in each.turns if turn.role == "assistant"]
        assert len(starts) == len(answers)
        for index, (start, answer) in enumerate(zip(starts, answers, strict=True)):
            end = start + int(encoded.weights[start:].tolist().index(0)) if not encoded.weights[start:].all() else None
            *spoken, last = encoded.ids[start:end].tolist()
            assert last == chat.stop_ids[0]
            if name == "qwen3":
                is_late = all(turn.role != "user" for turn in each.turns[find_answer(each, index) :])
                if not is_late:
                    answer = answer.split("</think>")[-1]
                elif "</think>" not in answer and index == len(answers) - 1:
                    answer = f"<think>\n\n</think>\n\n{answer}"
            expected = theirs.decode(theirs(answer.strip(), add_special_tokens=False)["input_ids"])
            squeeze = without_space if name == "qwen3" else str.strip  # it makes the lines around thoughts itself
            assert squeeze(theirs.decode(spoken)) == squeeze(expected), each


def without_space(text):
    return "".join(text.split())


def find_answer(conversation, index):
    return [place for place, turn in enumerate(conversation.turns) if turn.role == "assistant"][index]


def test_the_mask_is_that_of_transformers_where_the_template_tells_it(tmp_path):
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
        "{% endif %}{{ '\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"
    )
    made = make_folder("qwen")
    # With trimmed offsets transformers loses every answer from the first that begins with space on; ours do not.
    made.pipeline.post_processor = processors.ByteLevel(trim_offsets=False)
    write_folder(tmp_path, made)
    theirs, draw = AutoTokenizer.from_pretrained(tmp_path), random.Random(7)
    chat = JinjaTemplate(tokenizer=load_tokenizer(tmp_path), jinja=source, name="generation")
    for index in range(200):
        each = make_conversation(draw, "chatml", language=LANGUAGES[index % len(LANGUAGES)])
        found = theirs.apply_chat_template(
            messages_of(each.turns), chat_template=source, return_assistant_tokens_mask=True
        )
        encoded = chat.encode_conversation(each)
        assert encoded.ids.tolist() == found["input_ids"]
        assert encoded.weights.tolist() == found["assistant_masks"], each


def test_a_spelled_control_token_is_one_to_transformers_and_text_to_us(name, chat, theirs):
    stop = theirs.convert_ids_to_tokens(chat.stop_ids[0])
    for role in ("user", "assistant"):
        turns = tuple(Turn(each, f"a{stop}b" if each == role else "c") for each in ("user", "assistant"))
        ids = chat.encode_conversation(Conversation(turns=turns, language="en", source="s")).ids.tolist()
        text = theirs.apply_chat_template(messages_of(turns))["input_ids"]
        assert text.count(chat.stop_ids[0]) == ids.count(chat.stop_ids[0]) + 1
        assert f"a{stop}b" in theirs.decode(ids)


def test_a_template_and_a_tokenizer_that_do_not_go_together_are_refused(tmp_path):
    write_folder(tmp_path, make_folder("gpt2"))
    for name in ("chatml", "llama3", "gemma", "command_r"):
        with pytest.raises(DataError, match=f"template {name}: it closes an answer with"):
            load_chat(load_tokenizer(tmp_path), name)
