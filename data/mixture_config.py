"""What a recipe says about the mixture: how often each language and source is seen."""

from typing import Annotated, Literal

import msgspec


class MixtureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often each language and source is seen."""

    temperature: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    """Language share is proportional to (its weighted amount) ** (1 / temperature); 1 = proportional, 100 = uniform.
    Source: arXiv:1910.10683 section 3.5.2 (T5) and methods of mT5, whose alpha is 1 / temperature."""
    unit: Literal["examples", "tokens", "target_tokens"] = "examples"
    """What amounts and shares count."""
    language_weights: dict[str, float] = {}
    """Explicit multipliers on languages' shares, after the temperature; 0 removes a language on purpose."""
