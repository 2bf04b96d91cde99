"""Conversations that the tests of cleaning are about."""

from data.schema import Conversation, Turn


def chat(answer: str, *, prompt: str = "?", language: str = "en", source: str = "s", task: str = "") -> Conversation:
    turns = (Turn("user", prompt), Turn("assistant", answer))
    return Conversation(turns=turns, language=language, source=source, task=task, id="f.jsonl:1")
