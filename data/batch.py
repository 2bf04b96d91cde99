"""The batch contract: what `data` hands to `train` and `eval`, as NumPy arrays."""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Role(enum.IntEnum):
    """Who a token belongs to. `HEADER` is template scaffolding (BOS, role tokens), `TEXT` a text by itself,
    `PAD` nobody."""

    PAD = 0
    HEADER = 1
    SYSTEM = 2
    USER = 3
    ASSISTANT = 4
    TOOL = 5
    TEXT = 6


class Batch(NamedTuple):
    """B packed rows of T positions. Position t holds an input token and the token that follows it.

    An example of n ids fills n - 1 positions: its inputs are ids[:-1], its targets ids[1:], so no position
    of a segment lacks a target and the first token of a segment is never a target of the one before it.

    Two examples, ids (1 5 6 7) and (1 8 9), assistant tokens 6, 7 and 9, in a row of T = 6:

        tokens       1 5 6 1 8 0
        targets      5 6 7 8 9 0
        loss_weight  0 1 1 0 1 0
        segments     1 1 1 2 2 0
        positions    0 1 2 0 1 0
    """

    tokens_BT: Int32[np.ndarray, "B T"]
    targets_BT: Int32[np.ndarray, "B T"]
    """The token after each input token within its segment; the pad id at padding."""
    loss_weight_BT: Float32[np.ndarray, "B T"]
    """Weight of the target's log-likelihood in the loss; 0 where nothing is trained."""
    segments_BT: Int32[np.ndarray, "B T"]
    """0 = padding, 1.. = which packed example; attention never crosses segments."""
    positions_BT: Int32[np.ndarray, "B T"]
    """Restart at 0 in each segment."""
    language_BT: Int32[np.ndarray, "B T"]
    """Index into the run's language table; 0 is padding, so languages start at 1."""
    role_BT: Int32[np.ndarray, "B T"]
    """`Role` of the target token, so `role == ASSISTANT` and `loss_weight` speak of the same token."""
    source_BT: Int32[np.ndarray, "B T"]
    """Index into the run's source table; 0 is padding, so sources start at 1."""
