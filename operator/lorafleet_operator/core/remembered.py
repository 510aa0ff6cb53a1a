"""Values of a pure function, made again only when what they are made of has changed: most of a fleet never changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """By key. Only the speed of what asks depends on it, never a result."""

    def __init__(self) -> None:
        self._last: dict[K, tuple[tuple[Any, ...], object, V]] = {}

    def value(self, key: K, made_of: tuple[Any, ...], make: Callable[[], V], after: object = None) -> V:
        """What `make` gives from `made_of` and `after`.

        `made_of` is compared by value, which costs next to nothing while its parts are the objects of the last time;
        `after`, a former value that may be given back as it is, by identity.
        """
        last = self._last.get(key)
        if last is not None and last[1] is after and last[0] == made_of:
            return last[2]
        value = make()
        self._last[key] = made_of, after, value
        return value

    def keep(self, keys: Mapping[K, object]) -> None:
        """Forget all others."""
        if len(self._last) > len(keys):
            self._last = {key: last for key, last in self._last.items() if key in keys}
