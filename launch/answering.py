"""Prompts to answers, all at once or as they come: what `generate` and `chat` share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizer import Tokenizer
from eval.engine import Model, check_ids
from eval.grading import decode_answer
from model.decode import DecodeState, advance, start
from model.sampling import SamplingConfig
from model.transformer import split_stack

SHOWN_AT_ONCE = 4
"""Tokens between two looks at the text."""


class AnswerConfig(NamedTuple):
    """How answers are drawn and when they end."""

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    """An answer ends before the first of these that appears in its text."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0


class Answer(NamedTuple):
    """One prompt's continuation, and whether it ended by itself."""

    text: str
    stopped: bool


Show = Callable[[Sequence[str]], None]
"""Sees what of each row's text is certain so far."""


def prepare_to_decode(model: Model) -> Model:
    """The model laid out for answering and nothing else; the given one's layers are deleted, stack by stack.

    On a CPU each layer gets arrays of its own (`model.transformer.unstack`), which is faster (docs/benchmarks.md).
    """
    if jax.default_backend() != "cpu":
        return model
    layers = {}
    for name, stack in model.params["layers"].items():
        layers[name] = jax.block_until_ready(jax.jit(split_stack)(stack))
        for leaf in jax.tree.leaves(stack):
            leaf.delete()
    return model._replace(params={**model.params, "layers": layers})


def answer_rows(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    config: AnswerConfig,
    *,
    show: Show | None = None,
) -> list[Answer]:
    """The answers to prompts of any lengths, in order, computed as one batch on the mesh in use.

    With `show`, or with stop strings, the text is looked at every few tokens; otherwise once, at the end. Raises
    ValueError for an empty prompt, no room for an answer, or an empty stop string.
    """
    _check(prompts, config)
    check_ids([np.array(ids) for ids in prompts], model.cfg)
    prompts_BT, lengths_B = pad_right(prompts)
    state = start(
        model.cfg, model.axes, model.params, jnp.asarray(prompts_BT), jnp.asarray(lengths_B),
        max_new_tokens=config.max_new_tokens, sampling=config.sampling, key=jax.random.key(config.seed),
        compute=model.compute,
    )  # fmt: skip
    pace = SHOWN_AT_ONCE if show or config.stop_strings else config.max_new_tokens
    answers: list[Answer] = []
    for until in [*range(pace, config.max_new_tokens, pace), config.max_new_tokens]:
        state = advance(
            model.cfg, model.axes, model.params, state, until=until, stop_ids=config.stop_ids,
            sampling=config.sampling, compute=model.compute,
        )  # fmt: skip
        answers = _read_answers(tokenizer, state, config)
        if show:
            show([_certain(answer, config.stop_strings) for answer in answers])
        if all(answer.stopped for answer in answers):
            break
        done_B = np.array([answer.stopped for answer in answers])
        state = state._replace(done_B=jax.device_put(done_B, state.done_B.sharding))
    return answers


def pad_right(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The prompts as one array, right-padded with zeros to a power of two of at least 16, and their lengths."""
    lengths_B = np.array([len(ids) for ids in prompts], np.int32)
    width = max(16, 1 << int(lengths_B.max() - 1).bit_length())
    prompts_BT = np.zeros((len(prompts), width), np.int32)
    for row, ids in enumerate(prompts):
        prompts_BT[row, : len(ids)] = ids
    return prompts_BT, lengths_B


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    found = [at for stop in stop_strings if (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


def hold_back(text: str, stop_strings: Sequence[str]) -> str:
    """The text without an end that may still become a stop string or a character that is not whole yet."""
    text = text.rstrip("\ufffd")
    longest = max((len(stop) for stop in stop_strings), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_strings):
            return text[:-length]
    return text


def _read_answers(tokenizer: Tokenizer, state: DecodeState, config: AnswerConfig) -> list[Answer]:
    tokens_BN, lengths_B, done_B = (np.asarray(x) for x in (state.tokens_BN, state.lengths_B, state.done_B))
    next_B = np.asarray(state.next_B1)[:, 0]
    answers = []
    for row, length in enumerate(lengths_B):
        text, is_cut = cut_at_stop(decode_answer(tokenizer, tokens_BN[row, :length]), config.stop_strings)
        # The next token is known already: an answer that ends right here has stopped, not run out of room.
        answers.append(Answer(text, bool(is_cut or done_B[row] or int(next_B[row]) in config.stop_ids)))
    return answers


def _certain(answer: Answer, stop_strings: Sequence[str]) -> str:
    return answer.text if answer.stopped else hold_back(answer.text, stop_strings)


def _check(prompts: Sequence[Sequence[int]], config: AnswerConfig) -> None:
    if config.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={config.max_new_tokens}; give at least 1")
    if not prompts or not all(len(ids) for ids in prompts):
        raise ValueError("a prompt is empty; give text, e.g. --prompt 'What comes after Monday?'")
    if not all(config.stop_strings):
        raise ValueError("a stop string is empty; every answer would end before it begins")
