"""Rows for the benchmarks of the data path, made from what is embedded: many languages, several exchanges a row."""

import json
import random
from pathlib import Path

from data.cldr import cldr_conversations
from data.source_config import CldrSource

CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>")
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with the marks that TRL needs to know answers; polytune needs none."""


def write_messages(path: Path, count: int, *, seed: int = 0) -> None:
    """Writes rows of `messages` and `language`: one to eight exchanges about facts, and now and then a longer text."""
    by_language: dict[str, list[tuple[str, str]]] = {}
    for conversation in cldr_conversations(CldrSource(facts=40)):
        pair = (conversation.turns[0].content, conversation.turns[-1].content)
        by_language.setdefault(conversation.language, []).append(pair)
    draw = random.Random(seed)
    languages = sorted(by_language)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            language = draw.choice(languages)
            messages = []
            for question, answer in draw.choices(by_language[language], k=draw.randint(1, 8)):
                told = " ".join(
                    text for pair in draw.choices(by_language[language], k=draw.randint(0, 6)) for text in pair
                )
                messages += [
                    {"role": "user", "content": f"{told} {question}".strip()}, {"role": "assistant", "content": answer}
                ]  # fmt: skip
            file.write(json.dumps({"messages": messages, "language": language}, ensure_ascii=False) + "\n")


def write_tokenizer(folder: Path, rows: Path, *, vocab_size: int = 16_384) -> None:
    """Writes a byte-level BPE tokenizer trained on the rows, as a folder that both sides read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(CONTROL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    with rows.open(encoding="utf-8") as file:
        some = [json.loads(line) for _, line in zip(range(5000), file, strict=False)]
    tokenizer.train_from_iterator((m["content"] for row in some for m in row["messages"]), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>",
        "chat_template": TEMPLATE, "model_max_length": 1 << 20,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
