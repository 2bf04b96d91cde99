"""What a predicate says about one conversation."""

from collections.abc import Callable
from typing import NamedTuple

from data.schema import Conversation


class Finding(NamedTuple):
    """What one predicate found."""

    detail: str = ""
    """What was found and what was asked for; "" for nothing against the conversation."""
    is_judged: bool = True
    """False: the predicate can say nothing about it, because it is too short, or its language unknown."""


KEPT = Finding()
NOT_JUDGED = Finding(is_judged=False)
Predicate = Callable[[Conversation], Finding]


class Reason(NamedTuple):
    """Why a conversation is left out."""

    predicate: str
    """Its name in the recipe: `length`, `script_mismatch` ..."""
    detail: str
    """What was found and what was asked for."""


class Verdict(NamedTuple):
    """All that the row checks say about one conversation."""

    reason: Reason | None
    """None: it is kept, as far as they go."""
    not_judged: tuple[str, ...] = ()
    """Names of the predicates that could say nothing about it."""
