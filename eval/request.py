"""What a task asks of a model, and what the model answers. Token ids only: no text, no languages."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Score(NamedTuple):
    """Asks for the likelihood of some of the ids, each given every id before it."""

    ids: Int32[np.ndarray, " n"]
    weights: Float32[np.ndarray, " n"]
    """1 for each id whose likelihood is asked for, 0 for the others. The first id can never be asked for."""


class Scored(NamedTuple):
    """The answer to a `Score`."""

    log_likelihood: float
    """Sum over the asked-for ids of log p(id | ids before it), in nats."""
    tokens: int
    """How many ids were asked for."""
    is_greedy: bool
    """Every asked-for id was the most likely one."""
    truncated: bool
    """The left part of the context was cut off."""


class Generate(NamedTuple):
    """Asks for the greedy continuation of a prompt."""

    prompt: Int32[np.ndarray, " n"]
    max_new_tokens: int
    stop_ids: tuple[int, ...]


class Generated(NamedTuple):
    """The answer to a `Generate`."""

    ids: list[int]
    """Without the stop token."""
    stopped: bool
    """A stop token came within `max_new_tokens`."""
    truncated: bool
    """The left part of the prompt was cut off."""
