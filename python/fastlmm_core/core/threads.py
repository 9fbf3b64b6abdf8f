"""BLAS's threads, which belong to the process, lent to blocks of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock, get_ident
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["blas_libraries", "blas_threads"]


@cache
def blas_libraries() -> list[Any]:
    """The BLAS libraries loaded in this process; looking for them takes longer than a small fit."""
    return [c for c in ThreadpoolController().lib_controllers if c.user_api == "blas"]


def set_threads(library: Any, count: int) -> None:
    """Set one library's count from whatever Python thread.

    threadpoolctl lets the thread that set it first keep control, and takes no notice of others; `Bounds` decides here.
    """
    clear = getattr(library, "clear_controlling_thread", None)  # OpenBLAS's, in recent versions
    if clear is not None:
        clear(force=True)
    library.set_num_threads(count)
    if clear is not None:
        clear(force=True)


class Bounds:
    """The bounds of the blocks that are open, in every Python thread."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.asked: dict[int, list[int]] = {}  # by thread, the innermost block last
        self.before: list[int] = []  # the libraries' own counts, while a block is open
        self.now = 0  # the bound in force, while a block is open

    def enter(self, threads: int) -> None:
        """Open a block."""
        with self.lock:
            if not self.asked:
                self.before = [library.num_threads for library in blas_libraries()]
                self.now = 0
            self.asked.setdefault(get_ident(), []).append(threads)
            self.apply()

    def leave(self) -> None:
        """Close this thread's innermost block."""
        with self.lock:
            mine = self.asked[get_ident()]
            mine.pop()
            if not mine:
                del self.asked[get_ident()]
            if self.asked:
                self.apply()
            else:
                for library, count in zip(blas_libraries(), self.before, strict=True):
                    if count != self.now:
                        set_threads(library, count)

    def apply(self) -> None:
        """Bring the libraries to the least of what the threads' innermost blocks ask for."""
        least = min([blocks[-1] for blocks in self.asked.values()])
        for library, count in zip(blas_libraries(), self.before, strict=True):
            if least != (self.now or count):
                set_threads(library, least)
        self.now = least


BOUNDS = Bounds()
"""One for the process, as the libraries are."""


@contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """Bound BLAS to ``threads`` inside the block.

    Blocks nest, and may be open in several Python threads at once: the bound of a thread that is still inside its block
    is not lifted by another that leaves its own.
    """
    BOUNDS.enter(threads)
    try:
        yield
    finally:
        BOUNDS.leave()
