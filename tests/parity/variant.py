"""What a tiny config of one family is, and the two ways its config.json is spelled in the wild."""

import copy
from typing import Any, NamedTuple

DROP = "<drop this key>"
"""As a value of a patch: the key is taken out of the config, so that its default applies."""


class Variant(NamedTuple):
    """One folder of tests/golden/families.

    `switches` maps what is tested to a patch of the config that turns it off: the reference logits must then change.
    """

    name: str
    config: dict[str, Any]
    switches: dict[str, dict[str, Any]]
    prefix_dropped: str = ""
    """Taken off the front of tensor names, as checkpoints saved from the bare decoder have it."""
    rotary_buffers: bool = False
    """Old Llama checkpoints also hold the inverse frequencies of each layer; every reader ignores them."""
    batch_rows: tuple[int, int] = (2, 24)
    prompt_length: int = 10
    crossing_length: int = 0
    """A second prompt of this length, whose continuation crosses from the short side of LongRoPE to the long one."""


def patched(config: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of config with the keys of patch set, or taken out where the value is DROP."""
    merged = copy.deepcopy(config) | copy.deepcopy(patch)
    return {key: value for key, value in merged.items() if value is not DROP and value != DROP}
