"""`polytune generate`: a model answers prompts."""

from collections.abc import Sequence

import jax
from rich.console import Console
from rich.text import Text

from data.schema import Turn
from eval.opening import load_model, open_model
from launch.answering import Answer, AnswerConfig, answer_rows, prepare_to_decode
from launch.runtime import set_up_process
from model.checkpoint import Weights
from model.config import ComputeConfig
from model.parallel import MeshConfig, make_mesh


def run_generate(
    path: str,
    prompts: Sequence[str],
    config: AnswerConfig,
    *,
    system: str | None,
    template: str | None,
    compute: ComputeConfig,
    weights: Weights = "params",
    console: Console,
) -> int:
    """Prints an answer to each prompt."""
    set_up_process()
    answers = answer_prompts(path, prompts, config, system=system, template=template, compute=compute, weights=weights)
    for prompt, answer in zip(prompts, answers, strict=True):
        console.print(Text("> ", "cyan").append(prompt))
        console.print(
            Text(answer.text, "bold green").append(
                "" if answer.stopped else f" [cut at {config.max_new_tokens} tokens]", "dim"
            )
        )
    return 0


def answer_prompts(
    path: str,
    prompts: Sequence[str],
    config: AnswerConfig,
    *,
    system: str | None,
    template: str | None = None,
    compute: ComputeConfig = ComputeConfig(),
    weights: Weights = "params",
) -> list[Answer]:
    """The answers, in order, computed as one batch on one device; the model's stop ids are added to the config's.

    Raises ValueError for an empty prompt, and what opening the model raises.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("a prompt is empty; give text, e.g. --prompt 'What comes after Monday?'")
    opened = open_model(path, template=template, weights=weights)
    chat = opened.need_chat()
    opening = (Turn("system", system),) if system else ()
    encoded = [chat.encode_prompt((*opening, Turn("user", prompt))) for prompt in prompts]
    config = config._replace(stop_ids=(*config.stop_ids, *opened.stop_ids))
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1])):
        return answer_rows(prepare_to_decode(load_model(opened, compute)), opened.tokenizer, encoded, config)
