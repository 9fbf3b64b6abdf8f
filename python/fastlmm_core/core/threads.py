"""BLAS's threads, which belong to the process, lent to blocks of code."""

from __future__ import annotations

import os
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

    threadpoolctl lets the thread that set it first keep control, and takes no notice of others; `Bounds` decides here,
    also over a limit that another thread of the caller's holds.
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
        self.asked: dict[object, tuple[int, int]] = {}  # by block, in order of entry: Python thread, and bound
        self.before: list[int] = []  # the libraries' own counts, while a block is open
        self.now: int | None = None  # the bound in force, while a block is open

    def enter(self, block: object, threads: int) -> None:
        """Open a block."""
        with self.lock:
            if not self.asked:
                self.before, self.now = [library.num_threads for library in blas_libraries()], None
            self.asked[block] = get_ident(), threads
            self.apply()

    def leave(self, block: object) -> None:
        """Close a block, if it was opened."""
        with self.lock:
            if self.asked.pop(block, None) is not None:
                self.apply()

    def apply(self) -> None:
        """Bring the libraries to the least of what the threads' innermost blocks ask for; back when none is left."""
        least = min(dict(self.asked.values()).values()) if self.asked else None
        for library, count in zip(blas_libraries(), self.before, strict=True):
            wanted, current = (count if bound is None else bound for bound in (least, self.now))
            if wanted != current:
                set_threads(library, wanted)
        self.now = least

    def after_fork(self) -> None:
        """In a child there are no threads but the one that forked, and nobody holds the lock."""
        self.lock = Lock()
        here = get_ident()
        for block in [block for block, (thread, _) in self.asked.items() if thread != here]:
            self.leave(block)


BOUNDS = Bounds()
"""One for the process, as the libraries are."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BOUNDS.after_fork)


class blas_threads:
    """Bound BLAS to ``threads`` inside a `with` block.

    Blocks nest, and may be open in several Python threads at once: the bound of a thread that is still inside its block
    is not lifted by another that leaves its own.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        try:
            BOUNDS.enter(self, self.threads)
        except BaseException:
            BOUNDS.leave(self)
            raise

    def __exit__(self, *error: object) -> None:
        BOUNDS.leave(self)
