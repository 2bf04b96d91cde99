"""One dictionary of rotary embedding in a config.json, read key by key like the config itself."""

from collections.abc import Mapping
from typing import Any

from model.hf.config_file import ConfigFile, FamilyError, is_number


class RopeFields:
    """The keys of `rope_scaling` or `rope_parameters`; each must be asked for."""

    def __init__(self, values: Mapping[str, Any], config: ConfigFile, longest: int, yarn_is_long: bool = False):
        self._values, self._config = values, config
        self._asked = {"type", "rope_type"}
        self.longest = longest
        """`max_position_embeddings`, which is given beside the dictionary."""
        kind = values.get("rope_type") or values.get("type") or "default"
        self.kind = "longrope" if kind == "yarn" and yarn_is_long else kind
        """Which scaling it is."""

    def number(self, key: str, default: float | int | None = None) -> float:
        """The number under a key. Raises FamilyError if it is none, or missing without a default."""
        self._asked.add(key)
        value: Any = self._values.get(key)
        value = default if value is None else value
        if not is_number(value):
            raise FamilyError(
                f"{self._config.origin}: rope scaling {self.kind!r} needs a number for {key}; it has {value!r}"
            )
        return float(value)

    def length(self, key: str, default: int, *, outside: int = 0) -> int:
        """The number of tokens under a key, or given outside, which wins. Raises FamilyError for fewer than two."""
        value = outside or self.number(key, default)
        self._asked.add(key)
        if value < 2:
            raise FamilyError(
                f"{self._config.origin}: rope scaling {self.kind!r} has {key} {value!r}; it needs 2 or more"
            )
        return int(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """The list of numbers under a key. Raises FamilyError if it is none."""
        self._asked.add(key)
        value = self._values.get(key)
        if not isinstance(value, list) or not all(is_number(each) and each > 0 for each in value):
            raise FamilyError(
                f"{self._config.origin}: rope scaling {self.kind!r} needs a list of positive numbers for {key}"
            )
        return tuple(float(each) for each in value)

    def flag(self, key: str, default: bool) -> bool:
        """Whether a key is set."""
        self._asked.add(key)
        return bool(self._values.get(key, default))

    def check_all_asked(self) -> None:
        """Raises FamilyError naming every key that was not asked for and is not null."""
        unknown = sorted(key for key, value in self._values.items() if key not in self._asked and value is not None)
        if unknown:
            raise FamilyError(
                f"{self._config.origin}: rope scaling {self.kind!r} has {', '.join(unknown)}, which polytune does not "
                "understand and which may change what is computed"
            )

    def refuse(self) -> FamilyError:
        """The error for a scaling that is not computed here."""
        return FamilyError(
            f"{self._config.origin}: rope scaling {self.kind!r} is not computed here; polytune has linear, dynamic, "
            "llama3, yarn and longrope"
        )
