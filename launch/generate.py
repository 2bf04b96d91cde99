"""`polytune generate`: a checkpoint answers prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.text import Text

from data.chat import encode_prompt
from data.schema import Turn
from data.tokenizer import Tokenizer
from eval.config import EvalConfig
from eval.grading import decode_answer
from eval.run import load_matching_tokenizer, load_model
from launch.runtime import set_up_process
from model.checkpoint import find_checkpoint, read_meta
from model.decode import generate
from model.parallel import MeshConfig, make_mesh


class Answer(NamedTuple):
    """One prompt's continuation, and whether the model ended its turn itself."""

    text: str
    stopped: bool


def run_generate(
    checkpoint: str,
    prompts: Sequence[str],
    *,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    console: Console,
) -> int:
    """Prints an answer to each prompt; greedy at temperature 0."""
    set_up_process()
    answers = answer_prompts(
        checkpoint, prompts, system=system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        console.print(Text("> ", "cyan").append(prompt))
        console.print(
            Text(answer.text, "bold green").append(
                "" if answer.stopped else f" [cut at {max_new_tokens} tokens]", "dim"
            )
        )
    return 0


def answer_prompts(
    checkpoint: str,
    prompts: Sequence[str],
    *,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[Answer]:
    """The answers, in order, computed as one batch on one device. Raises CheckpointError, EvalError, ValueError."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; give at least 1")
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError("a prompt is empty; give text, e.g. --prompt 'What comes after Monday?'")
    found = find_checkpoint(checkpoint)
    meta = read_meta(found)
    tokenizer = load_matching_tokenizer(found, meta)
    opening = (Turn("system", system),) if system else ()
    encoded = [encode_prompt((*opening, Turn("user", prompt)), tokenizer) for prompt in prompts]
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), devices=jax.devices()[:1])):
        model = load_model(found, meta, EvalConfig(checkpoint=checkpoint, tasks=("generate",)))
        prompts_BT, lengths_B = pad_right(encoded)
        tokens_BN, counts_B = generate(
            model.cfg, model.axes, model.params, jnp.asarray(prompts_BT), jnp.asarray(lengths_B),
            max_new_tokens=max_new_tokens, stop_id=tokenizer.end_id, sample=temperature > 0,
            temperature=temperature, key=jax.random.key(seed), compute=model.compute,
        )  # fmt: skip
    return [
        _decode(tokenizer, ids, int(count), max_new_tokens)
        for ids, count in zip(np.asarray(tokens_BN), np.asarray(counts_B), strict=True)
    ]


def pad_right(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The prompts as one array, right-padded with zeros to a power of two of at least 16, and their lengths."""
    lengths_B = np.array([len(ids) for ids in encoded], np.int32)
    width = max(16, 1 << int(lengths_B.max() - 1).bit_length())
    prompts_BT = np.zeros((len(encoded), width), np.int32)
    for row, ids in enumerate(encoded):
        prompts_BT[row, : len(ids)] = ids
    return prompts_BT, lengths_B


def _decode(tokenizer: Tokenizer, ids: np.ndarray, count: int, limit: int) -> Answer:
    return Answer(text=decode_answer(tokenizer, ids[:count].tolist()), stopped=count < limit)
