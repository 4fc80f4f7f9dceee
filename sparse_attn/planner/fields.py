"""A config's fields: read, checked and, where one is missing, taken from the class default that transformers has.

Every sentence names the field, what came and what was expected. What was taken from a default is remembered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from .records import Assumed

_MOST = 1 << 53  # beyond it a JSON number is no exact whole number everywhere
_SHAPES = ("heads", "size", "dim", "rank", "experts", "head_dim", "layers", "groups", "state")


@cache
def class_defaults() -> Mapping[str, Mapping[str, Any]]:
    """`model_type` -> {"fields": defaults, "aliases": {other name: name}} of transformers' config classes."""
    data: dict[str, Any] = json.loads(files(__package__).joinpath("class_defaults.json").read_text("utf-8"))
    return data["classes"]  # type: ignore[no-any-return]


class Fields:
    """Typed access to one config of one family."""

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        known = class_defaults().get(family, {"fields": {}, "aliases": {}})
        self.config = config
        self.family = family
        self.defaults: Mapping[str, Any] = known["fields"]
        self._aliases: dict[str, list[str]] = {}
        for one, other in known["aliases"].items():
            self._aliases.setdefault(one, []).append(other)
            self._aliases.setdefault(other, []).append(one)
        self._assumed: dict[str, Assumed] = {}

    def name_of(self, *names: str) -> str | None:
        """The first of these names, or of their aliases, that the config gives a value other than null."""
        for name in names:
            for known in (name, *self._aliases.get(name, ())):
                if self.config.get(known) is not None:
                    return known
        return None

    def given(self, *names: str) -> bool:
        """Whether the config itself gives one of these a value."""
        return self.name_of(*names) is not None

    def explicit_null(self, name: str) -> bool:
        """Whether the config says null: "not used", where a class default would say something else."""
        return name in self.config and self.config[name] is None

    def value(self, *names: str, default: Any = None) -> Any:
        """The value, unchecked; else the class default; else `default`."""
        found = self.name_of(*names)
        if found is not None:
            return self.config[found]
        for name in names:
            for known in (name, *self._aliases.get(name, ())):
                if self.defaults.get(known) is not None and not self.explicit_null(name):
                    self._assume(name, self.defaults[known])
                    return self.defaults[known]
        return default

    def whole(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; an error if neither the config nor a default has one."""
        value = self.value(*names, default=default)
        if value is None:
            raise ValueError(f"config.json ({self.family}): {_either(names)} is missing, expected {_wanted(least)}")
        return check_whole(self.name_of(*names) or names[0], value, least, self.family)

    def maybe_whole(self, *names: str, least: int = 1) -> int | None:
        """The same, or None if there is none (null included)."""
        value = self.value(*names)
        return None if value is None else check_whole(self.name_of(*names) or names[0], value, least, self.family)

    def required(self, name: str, least: int = 1) -> int:
        """A whole number that the config must give itself: no default of a class can stand for it."""
        found = self.name_of(name)
        if found is None:
            raise ValueError(f"config.json ({self.family}): {name} is missing, expected {_wanted(least)}")
        return check_whole(found, self.config[found], least, self.family)

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false; null is false."""
        value = self.value(*names, default=default)
        if value is None:
            return False
        if not isinstance(value, bool):
            if value in (0, 1):
                return bool(value)
            raise ValueError(f"config.json ({self.family}): {_either(names)} must be true or false, got {value!r}")
        return value

    def number(self, *names: str, default: float | None = None) -> float | None:
        """A finite number, or None."""
        value = self.value(*names, default=default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"config.json ({self.family}): {_either(names)} must be a finite number, got {value!r}")
        return float(value)

    def listed(self, *names: str, length: int | None = None) -> list[Any] | None:
        """A list (of `length` entries), or None."""
        value = self.value(*names)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"config.json ({self.family}): {_either(names)} must be a list, got {value!r}")
        if length is not None and len(value) != length:
            raise ValueError(
                f"config.json ({self.family}): {_either(names)} has {len(value)} entries, but num_hidden_layers is {length}"
            )
        return list(value)

    def fail(self, sentence: str) -> ValueError:
        """An error about this config."""
        return ValueError(f"config.json ({self.family}): {sentence}")

    @property
    def assumed(self) -> tuple[Assumed, ...]:
        """The class defaults that were taken so far, in the order of asking."""
        hidden = self.config.get("hidden_size")
        odd = hidden is not None and self.defaults.get("hidden_size") not in (None, hidden)
        return tuple(
            Assumed(
                one.field,
                one.value,
                one.source,
                odd and one.field != "vocab_size" and any(word in one.field for word in _SHAPES),
            )
            for one in self._assumed.values()
        )

    def _assume(self, name: str, value: Any) -> None:
        if isinstance(value, bool) and name != "tie_word_embeddings":
            return  # a switch that is off by default is no finding
        source = f"class default of {self.family} in transformers"
        self._assumed.setdefault(name, Assumed(name, json.dumps(value), source))


def check_whole(name: str, value: Any, least: int, family: str) -> int:
    """A whole number of at least `least`, or one sentence about it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _MOST:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _MOST:
        raise ValueError(f"config.json ({family}): {name} must be {_wanted(least)}, got {value!r}")
    return value


def _wanted(least: int) -> str:
    return {0: "a whole number, not negative", 1: "a positive whole number"}.get(least, f"a whole number from {least}")


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
