"""BLAS on one thread, wherever this package calls it.

A BLAS of many threads does the same work in the same time on an idle machine, but its threads spin at barriers and take
many times as long where other work runs. So there is one rule: BLAS runs on one thread, and what is worth sharing is
shared by tiles of our own. BLAS's threads belong to the process, hence the care that follows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from threading import Lock, RLock, get_ident
from typing import Any, ClassVar, Protocol, TypeVar, cast
from weakref import ref

from threadpoolctl import ThreadpoolController

from fastlmm_core._native.openmp import stay_on_one_thread

__all__ = ["FORKED", "ForkedLock", "blas_libraries", "bounded", "one_blas_thread"]

F = TypeVar("F", bound=Callable[..., Any])


@cache
def blas_libraries() -> list[Any]:
    """The BLAS libraries loaded in this process; looking for them takes longer than a small fit."""
    return [c for c in ThreadpoolController().lib_controllers if c.user_api == "blas"]


@cache
def counters() -> list[Callable[[], int]]:
    """What tells how many threads each library has: its own function where that is one of OpenBLAS's.

    Fits ask for it several times, and threadpoolctl looks the function up each time.
    """
    return [own_function(library, "get") or library.get_num_threads for library in blas_libraries()]


@cache
def own_function(library: Any, verb: str) -> Callable[..., Any] | None:
    """OpenBLAS's function to get or set its threads, by one of the names that builds give it.

    None where it is not the one to call: of other libraries, and where OpenMP has the threads.
    """
    if library.internal_api != "openblas" or getattr(library, "threading_layer", "openmp") == "openmp":
        return None
    names = [f"{before}openblas_{verb}_num_threads{after}" for before in ("", "scipy_") for after in ("", "64_", "_64")]
    return next((getattr(library.dynlib, name) for name in names if hasattr(library.dynlib, name)), None)


def set_threads(library: Any, count: int) -> None:
    """Set one library's count from whatever Python thread.

    threadpoolctl lets the thread that set it first keep control, and takes no notice of others; `Blocks` decides here,
    also over a limit that another thread of the caller's holds. OpenBLAS's own function takes a fiftieth of the time.
    """
    own = own_function(library, "set")
    if own is not None:
        own(count)
        return
    clear = getattr(library, "clear_controlling_thread", None)  # OpenBLAS's, in recent versions
    if clear is not None:
        clear(force=True)
    library.set_num_threads(count)
    if clear is not None:
        clear(force=True)


class Blocks:
    """The blocks that are open, in every Python thread, and the bound that they share.

    Blocks nest many times in a fit, so opening and closing one takes no lock while the bound holds: a block is put down
    before it looks whether it does, and `release` takes the bound back before it looks whether a block is open.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.open: dict[int, int] = {}  # by the id of a block: Python thread
        self.before: list[int] = []  # the libraries' own counts, until they are brought back
        self.bound = False

    def bind(self) -> None:
        """Bound the libraries, if they are not; for a block that is open."""
        with self.lock:
            if self.bound:
                return
            # kept before anything is changed: a fork here finds what to bring back
            self.before = self.before or [count() for count in counters()]
            self._set([1] * len(self.before))
            self.bound = True

    def release(self) -> None:
        """Bring the libraries back to what they had, if no block is open."""
        with self.lock:
            bound, self.bound = self.bound, False
            if self.open:
                self.bound = bound
                return
            self._set(self.before)
            self.before = []

    def _set(self, counts: list[int]) -> None:
        """Set those libraries that had more threads than one."""
        if self.before.count(1) == len(self.before):
            return
        for library, count, before in zip(blas_libraries(), counts, self.before, strict=True):
            if before != 1:
                set_threads(library, count)

    def after_fork(self) -> None:
        """In a child there are no threads but the one that forked, and nobody holds the lock."""
        self.lock = Lock()
        here = get_ident()
        self.open = {block: thread for block, thread in self.open.items() if thread == here}
        if not self.open and self.before:
            self.release()


BLOCKS = Blocks()
"""One for the process, as the libraries are."""

FORKED: list[int] = []
"""The threads that forked on the way to this process, of which each went on in its child; none in a first process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BLOCKS.after_fork)
    os.register_at_fork(after_in_child=stay_on_one_thread)
    os.register_at_fork(after_in_child=lambda: FORKED.append(get_ident()))
    os.register_at_fork(after_in_child=lambda: setattr(ForkedLock, "recovery", RLock()))


class Renewed(Protocol):
    """What a `ForkedLock` guards."""

    def renew(self, lost: bool) -> None:
        """Make right what a fork broke; ``lost`` tells whether somebody was in the middle of something."""
        ...


class ForkedLock:
    """A lock that a forked child finds free where a thread held it that did not come along.

    What the lock guards was left half done then, so whose it is is told.

    Parameters
    ----------
    guarded : Renewed
        Its `renew` is called before the first use in a child, with whether the lock was held by a thread that is not
        there.

    Attributes
    ----------
    owner : int or None
        The thread that holds it.
    """

    recovery: ClassVar[Any] = RLock()

    def __init__(self, guarded: Renewed) -> None:
        self._forks, self._guarded = len(FORKED), ref(guarded)
        self.free()

    def free(self) -> None:
        """Nobody holds it."""
        self._lock = Lock()
        self.owner: int | None = None

    def recover(self) -> None:
        """In a child before its first use, let go of what threads held that are not there."""
        if self._forks == len(FORKED):
            return
        with self.recovery:
            forks = FORKED[self._forks :]
            if not forks:  # another thread of the child came first
                return
            lost = self._lock.locked() and any(thread != self.owner for thread in forks)
            if lost:
                self.free()
            guarded = self._guarded()
            if guarded is not None:
                guarded.renew(lost)
            self._forks += len(forks)

    def __enter__(self) -> None:
        self.recover()
        self._lock.acquire()
        self.owner = get_ident()

    def __exit__(self, *error: object) -> None:
        self.owner = None
        self._lock.release()


class one_blas_thread:
    """Hold BLAS to one thread inside a `with` block.

    Blocks nest, and may be open in several Python threads at once: the bound ends with the last of them.
    """

    def __enter__(self) -> None:
        try:
            BLOCKS.open[id(self)] = get_ident()
            if not BLOCKS.bound:
                BLOCKS.bind()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        BLOCKS.open.pop(id(self), None)
        if not BLOCKS.open:
            BLOCKS.release()

    def __del__(self) -> None:
        if id(self) in BLOCKS.open:  # an interrupt came as `__exit__` began
            self.__exit__()


def bounded(function: F) -> F:
    """A function that runs on one thread of BLAS. Not for one whose warnings count the frames to its caller."""

    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with one_blas_thread():
            return function(*args, **kwargs)

    return cast(F, inside)
