"""What a recipe says about cleaning: named predicates, all off unless asked for."""

import msgspec


class CleaningConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which examples are left out, and why; each predicate's count by language is in the report."""
