"""Conversations in many scripts, and the tokenizer whose ids of them `tests/golden/templates` holds.

The texts are our own. `tests/parity/make_template_golden.py` writes the ids that transformers gives.
"""

import json
from pathlib import Path

from hub_folders import QWEN_SPLIT, Folder, spell_bytes

from data.schema import Conversation, Turn

GOLDEN = Path(__file__).parent / "golden" / "templates"
CONTROL = (
    "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
)  # fmt: skip
HAVE_TOOLS = ("llama3", "mistral", "qwen2_5", "qwen3")
HAVE_THOUGHTS = ("qwen3",)
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "hali_ya_hewa",
                "description": "Joto la mji",
                "parameters": {"type": "object", "properties": {"mji": {"type": "string"}}, "required": ["mji"]},
            },
        }
    ]
)


def call(city: str, *, number: int = 0) -> str:
    """The JSON of one call of the tool."""
    function = {"name": "hali_ya_hewa", "arguments": {"mji": city, "siku": 2}}
    return json.dumps([{"type": "function", "id": f"call{number:05d}", "function": function}], ensure_ascii=False)


def talk(name: str, language: str, *turns: Turn, tools: str = "") -> Conversation:
    """A conversation that errors call by its name."""
    return Conversation(turns=turns, language=language, source="golden", id=name, tools=tools)


def user(content: str) -> Turn:
    """The user's turn."""
    return Turn("user", content)


def answer(content: str, **fields: str) -> Turn:
    """The assistant's turn."""
    return Turn("assistant", content, **fields)


def result(content: str, *, number: int = 0) -> Turn:
    """The tool's turn."""
    return Turn("tool", content, tool_call_id=f"call{number:05d}", name="hali_ya_hewa")


PLAIN = (
    talk("one turn", "sw", user("Mji mkuu wa Kenya?"), answer("Nairobi.")),
    talk("no spaces", "th", user("เมืองหลวงของไทย"), answer("กรุงเทพฯ"), user("日本は？"), answer("東京です。")),
    talk("right to left", "he", Turn("system", "ענה בקצרה"), user("\u2067בירת צרפת?\u2069"), answer("פריז")),
    talk(
        "marks", "vi", Turn("system", " Ngắn. "), user("e\u0301\u0323?\n"), answer(" Được\u0323\n\n"), user("हि"),
        answer("नमस्ते"),
    ),
    talk("emoji", "en", user("👩🏽‍💻 hello"), answer("🇰🇪 world\n"), user("'s"), answer("\n```\nx\n```")),
)  # fmt: skip
WITH_TOOLS = (
    talk(
        "call and answer", "sw", Turn("system", "Msaidizi."), user("Joto Nairobi?"),
        answer("", tool_calls=call("Nairobi 🇰🇪")), result('{"joto": "24°"}'), answer("Ni 24°."), tools=TOOLS,
    ),
    talk("tools and no call", "ar", user("مرحبا"), answer("أهلا"), tools=TOOLS),
    talk(
        "one call after another", "ja", user("東京と大阪"), answer("", tool_calls=call("東京")), result("20\n"),
        answer("", tool_calls=call("大阪\n", number=1)), result("25", number=1), answer("20と25"), tools=TOOLS,
    ),
)  # fmt: skip
WITH_THOUGHTS = (
    talk(
        "thoughts", "fr", user("2+2 ?"), answer("4", thoughts="deux et deux"), user("et 3 ?"),
        answer("7", thoughts="\n4+3\n"),
    ),
    talk(
        "thoughts about calls", "sw", user("Joto?"), answer("Natafuta.", thoughts="wapi?", tool_calls=call("Lamu")),
        result("30"), answer("30°", thoughts="nzuri"), tools=TOOLS,
    ),
    talk(
        "thoughts within", "en", user("Hi"), answer("<think>\nhm\n</think>\n\nHello"), user("Bye"),
        answer("<think>\nok\n</think>\n\nBye"),
    ),
)  # fmt: skip


def list_conversations(template: str) -> tuple[Conversation, ...]:
    """What is golden for a template."""
    return PLAIN + (WITH_TOOLS if template in HAVE_TOOLS else ()) + (WITH_THOUGHTS if template in HAVE_THOUGHTS else ())


def make_folder() -> Folder:
    """A tokenizer of bytes, a few merges, and the control tokens of every template."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    pipeline = spell_bytes(QWEN_SPLIT, special=CONTROL)
    return Folder(pipeline, {"tokenizer_class": "PreTrainedTokenizerFast", **names})
