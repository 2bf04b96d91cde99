"""`polytune chat`: a conversation with a model, in its own template, its answers shown as they come."""

from collections.abc import Callable, Sequence

import jax
from rich.console import Console
from rich.text import Text

from data.chat import ChatTemplate
from data.schema import Turn
from eval.engine import Model
from eval.opening import load_model, open_model
from launch.answering import Answer, AnswerConfig, answer_rows, prepare_to_decode
from launch.runtime import set_up_process
from model.checkpoint import Weights
from model.config import ComputeConfig
from model.parallel import MeshConfig, make_mesh

HELP = "/reset forgets the conversation, /system TEXT begins a new one with a system message, /exit or Ctrl-D leaves"


def run_chat(
    path: str,
    config: AnswerConfig,
    *,
    system: str | None,
    template: str | None,
    compute: ComputeConfig,
    weights: Weights = "params",
    console: Console,
    ask: Callable[[str], str] = input,
) -> int:
    """Talks until the input ends. Raises what opening the model raises."""
    set_up_process()
    opened = open_model(path, template=template, weights=weights)
    chat = opened.need_chat()
    config = config._replace(stop_ids=(*config.stop_ids, *opened.stop_ids))
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1])):
        model = prepare_to_decode(load_model(opened, compute))
        console.print(f"[dim]{HELP}[/]", highlight=False)
        opening: tuple[Turn, ...] = (Turn("system", system),) if system else ()
        turns = opening
        while (line := _read_line(ask)) is not None:
            command, _, rest = line.partition(" ")
            if command == "/exit":
                break
            if command in ("/reset", "/system"):
                opening = ((Turn("system", rest.strip()),) if rest.strip() else ()) if command == "/system" else opening
                turns = opening
                console.print("[dim]a new conversation[/]")
            elif command.startswith("/") and command[1:].isalpha():
                console.print(f"[dim]{HELP}[/]", highlight=False)
            elif line.strip():
                turns = _answer(model, chat, (*turns, Turn("user", line)), config, console)
    return 0


def _answer(
    model: Model, chat: ChatTemplate, turns: tuple[Turn, ...], config: AnswerConfig, console: Console
) -> tuple[Turn, ...]:
    """The conversation with the model's answer, which is shown while it is made; without it after Ctrl-C."""
    shown = ""

    def show(texts: Sequence[str]) -> None:
        nonlocal shown
        fresh = texts[0].removeprefix(shown)
        console.print(Text(fresh, "green"), end="", soft_wrap=True)
        shown = texts[0]

    try:
        answer: Answer = answer_rows(model, chat.tokenizer, [chat.encode_prompt(turns)], config, show=show)[0]
    except KeyboardInterrupt:
        console.print("\n[dim]stopped; your last message is taken back[/]")
        return turns[:-1]
    rest = answer.text.removeprefix(shown)
    console.print(
        Text(rest, "green").append("" if answer.stopped else f" [cut at {config.max_new_tokens} tokens]", "dim")
    )
    if not answer.text.strip():
        console.print("[dim](an empty answer; your last message is taken back)[/]")
        return turns[:-1]
    return (*turns, Turn("assistant", answer.text))


def _read_line(ask: Callable[[str], str]) -> str | None:
    try:
        return ask("> ")
    except EOFError:
        return None
