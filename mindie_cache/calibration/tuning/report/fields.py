"""Fields: typed reading of plain JSON; an error says where something is wrong."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from mindie_cache.errors import ConfigError

_SHOWN_FIRST = "psnr", "latents"


@dataclass(frozen=True)
class Fields:
    """A mapping of the results, and `where` it is. Every reader raises ConfigError for a value of another type."""

    values: Mapping[str, Any]
    where: str

    def number(self, name: str) -> float | None:
        """None where it is missing, NaN or infinite."""
        value = self.values.get(name)
        if value is None:
            return None
        return self._number(value, name)

    def whole(self, name: str) -> int | None:
        value = self.number(name)
        if value is not None and value != int(value):
            raise self._wrong(name, "a whole number")
        return None if value is None else int(value)

    @overload
    def index(self, name: str, count: int) -> int | None: ...
    @overload
    def index(self, name: str, count: int, *, required: Literal[True]) -> int: ...
    def index(self, name: str, count: int, *, required: bool = False) -> int | None:
        """A place in a list of `count`."""
        value = self.whole(name)
        if (value is None and required) or (value is not None and not 0 <= value < count):
            raise self._wrong(name, f"an index into a list of {count}")
        return value

    def text(self, name: str, *, required: bool = False) -> str:
        value = self.values.get(name)
        if value is None and not required:
            return ""
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def part(self, name: str) -> Fields:
        """A mapping; an empty one where it is missing."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(name, "a mapping")
        return Fields(value or {}, f"{self.where}.{name}")

    def many(self, name: str, *, required: bool = False) -> list[Fields]:
        """Mappings of a list."""
        if required and name not in self.values:
            raise self._wrong(name, "a list")
        found = self._list(name)
        if not all(isinstance(value, Mapping) for value in found):
            raise self._wrong(name, "a list of mappings")
        return [Fields(value, f"{self.where}.{name}[{index}]") for index, value in enumerate(found)]

    def texts(self, name: str) -> tuple[str, ...]:
        found = self._list(name)
        if not all(isinstance(value, str) for value in found):
            raise self._wrong(name, "a list of texts")
        return tuple(found)

    def numbers(self, name: str) -> list[float]:
        found = [self._number(value, name) for value in self._list(name)]
        finite = [value for value in found if value is not None]
        if len(finite) != len(found):
            raise self._wrong(name, "a list of finite numbers")
        return finite

    def scores(self) -> dict[str, float]:
        """Of the scores those that are numbers, in the order in which they are shown."""
        scores = self.part("scores")
        found = {name: scores.number(name) for name in (*_SHOWN_FIRST, *scores.values)}
        return {name: value for name, value in found.items() if value is not None}

    def _list(self, name: str) -> Sequence[Any]:
        value = self.values.get(name)
        if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise self._wrong(name, "a list")
        return value or []

    def _number(self, value: Any, name: str) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        return float(value) if math.isfinite(value) else None

    def _wrong(self, name: str, wanted: str) -> ConfigError:
        got = reprlib.repr(self.values.get(name))
        return ConfigError(f"{self.where}.{name}={got} is not {wanted}: the results are damaged. Tune again.")
