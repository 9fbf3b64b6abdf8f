"""Progress bars, and their absence; tqdm is imported when the first one is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

__all__ = ["counted", "each"]

T = TypeVar("T")


class Unseen:
    """A bar that shows nothing."""

    disable = True

    def __enter__(self) -> Unseen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, k: int) -> None:
        """Count k more."""


def counted(total: int, show: bool, what: str, unit: str) -> Any:
    """A bar as a context, whose `update` counts; its `disable` is True where none is shown."""
    if not show:
        return Unseen()
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit)


def each(items: Iterable[T], show: bool, what: str, unit: str) -> Iterable[T]:
    """The items, counted by a bar as they are taken."""
    if not show:
        return items
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, desc=what, unit=unit)
    return bar
