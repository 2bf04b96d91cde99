"""A conversation over a pipe: what is remembered, forgotten and shown."""

import io

import pytest
from hub_models import write_hub_model
from rich.console import Console

from data.schema import Turn
from launch import chat as chat_program
from launch.answering import Answer, AnswerConfig
from model.config import ComputeConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hub_model(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def talk(folder, monkeypatch):
    """Runs a conversation of these lines; returns the prompts the model was given, and what was printed."""

    def run(lines, replies, system=None):
        left, asked, replies = iter(lines), [], iter(replies)

        def ask(_prompt):
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        def answer_rows(_model, tokenizer, prompts, _config, *, show):
            asked.append(tokenizer.decode([token for token in prompts[0] if not tokenizer.is_control(token)]))
            reply = next(replies)
            if isinstance(reply, BaseException):
                raise reply
            show([reply[:2]])
            return [Answer(reply, stopped=True)]

        monkeypatch.setattr(chat_program, "answer_rows", answer_rows)
        printed = io.StringIO()
        code = chat_program.run_chat(
            str(folder), AnswerConfig(max_new_tokens=8, stop_ids=()), system=system, template=None,
            compute=ComputeConfig(), console=Console(file=printed, width=200), ask=ask,
        )  # fmt: skip
        assert code == 0
        return asked, printed.getvalue()

    return run


def spelled(*turns):
    """What a ChatML prompt of these turns reads as without its control tokens."""
    return "".join(f"{turn.role}\n{turn.content}\n" for turn in turns) + "assistant\n"


def test_a_conversation_is_remembered_until_reset(talk):
    asked, printed = talk(["hi", "and", "/reset", "anew"], ["one", "two", "three"])
    assert asked == [
        spelled(Turn("user", "hi")),
        spelled(Turn("user", "hi"), Turn("assistant", "one"), Turn("user", "and")),
        spelled(Turn("user", "anew")),
    ]
    assert "one\n" in printed and "three\n" in printed


def test_a_system_message_opens_every_conversation_until_another_is_given(talk):
    asked, _ = talk(["a", "/reset", "b", "/system be brief", "c", "/system", "d"], ["x"] * 4, system="be kind")
    kind, brief = Turn("system", "be kind"), Turn("system", "be brief")
    assert asked == [
        spelled(kind, Turn("user", "a")), spelled(kind, Turn("user", "b")), spelled(brief, Turn("user", "c")),
        spelled(Turn("user", "d")),
    ]  # fmt: skip


def test_an_answer_that_was_interrupted_or_empty_is_not_remembered(talk):
    asked, printed = talk(["one", "two", "three"], [KeyboardInterrupt(), " ", "ok"])
    assert asked == [spelled(Turn("user", text)) for text in ("one", "two", "three")]
    assert printed.count("taken back") == 2


def test_an_unknown_command_explains_itself_and_a_path_is_text(talk):
    asked, printed = talk(["/help", "/etc/passwd is a file", "", "/exit", "never"], ["fine"])
    assert asked == [spelled(Turn("user", "/etc/passwd is a file"))]
    assert printed.count("/reset forgets") == 2
