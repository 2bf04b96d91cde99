"""Writes the ids that transformers gives for the golden conversations, and what of them the model says.

.venv-parity/bin/python -m tests.parity.make_template_golden
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from golden_templates import CONTROL, GOLDEN, list_conversations, make_folder
from hub_folders import write_folder
from transformers import AutoTokenizer

from data.chat import SHIPPED, list_templates
from data.schema import Conversation, Turn


def messages_of(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """Turns as transformers is given them."""
    messages = []
    for turn in turns:
        fields = {
            "role": turn.role,
            "content": turn.content,
            "reasoning_content": turn.thoughts or None,
            "tool_calls": json.loads(turn.tool_calls) if turn.tool_calls else None,
            "tool_call_id": turn.tool_call_id or None,
            "name": turn.name or None,
        }
        messages.append({key: value for key, value in fields.items() if value is not None})
    return messages


def tools_of(conversation: Conversation) -> list[dict[str, Any]] | None:
    """Tools as transformers is given them."""
    return json.loads(conversation.tools) if conversation.tools else None


def make_golden(tokenizer: Any, conversation: Conversation) -> dict[str, Any]:
    """The ids of the whole conversation, and of each answer where it begins and ends: by rendering prompts, and by the
    end of the turns through it, which tells nothing of how we find either."""
    messages, tools = messages_of(conversation.turns), tools_of(conversation)

    def encode(count: int, **how: bool) -> list[int]:
        return tokenizer.apply_chat_template(messages[:count], tools=tools, **how)["input_ids"]

    ids, spans = encode(len(messages)), []
    names = tokenizer.convert_ids_to_tokens(ids)
    for index, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            prompt = encode(index, add_generation_prompt=True)
            start = count_shared(prompt, ids)
            # One id may hold the end of the prompt and the beginning of the answer; it is the answer's.
            assert start >= len(prompt) - 1, (conversation.id, index)
            # "[TOOL_CALLS]" says what the answer is, and is no end of it.
            ends = [at for at in range(start, len(ids)) if names[at] in CONTROL and names[at] != "[TOOL_CALLS]"]
            spans.append([start, ends[0] + 1])
    return {"conversation": conversation.id, "ids": ids, "answers": spans}


def count_shared(left: list[int], right: list[int]) -> int:
    """How many ids two lists begin with alike."""
    pairs = zip(left, right, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def make_all() -> dict[str, list[dict[str, Any]]]:
    """The golden values of each template we ship."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        write_folder(Path(directory), make_folder())
        tokenizer = AutoTokenizer.from_pretrained(directory)
        for name in list_templates():
            tokenizer.chat_template = (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")
            found[name] = [make_golden(tokenizer, each) for each in list_conversations(name)]
    return found


def main() -> None:
    """Writes one file a template."""
    GOLDEN.mkdir(exist_ok=True)
    for name, rows in make_all().items():
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        (GOLDEN / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
