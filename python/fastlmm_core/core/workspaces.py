"""Workspaces of one design, lent to one thread at a time and kept for the next question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from threading import get_ident
from typing import Any

from fastlmm_core.core.control import Control
from fastlmm_core.core.criterion import Objective
from fastlmm_core.core.products import CrossProducts, DesignSums, Responses
from fastlmm_core.core.threads import ForkedLock
from fastlmm_core.errors import InUseError

__all__ = ["TakenInTurn", "Turn", "Workspaces"]

KEPT_BYTES = 1 << 28
"""Idle workspaces of one design are kept up to this size in all; a larger one is planned anew when it is needed."""


class Workspaces:
    """Objectives of one design, each with a plan of its own.

    Whoever takes one has it alone until it is given back; where none is idle another is planned, so that threads never
    meet in one workspace nor wait for it. All have one engine, whatever memory is free by then: a response's estimates
    are the same to the bit in each.

    When nobody has these workspaces any more, other designs of the same small pattern may.

    Parameters
    ----------
    reml : bool
    control : Control

    Attributes
    ----------
    calls_blas : bool
        Whether an evaluation may call BLAS.
    """

    def __init__(self, reml: bool, control: Control) -> None:
        self.reml, self.control = reml, control
        self.calls_blas = True  # until a plan has told
        self._n_bytes = 0  # of one, once there has been one
        self._idle: list[Objective] = []  # append and pop are atomic

    def __reduce__(self) -> tuple[type[Workspaces], tuple[bool, Control]]:
        return Workspaces, (self.reml, self.control)  # workspaces are neither pickled nor shared with a copy

    @property
    def planned(self) -> bool:
        """Whether there has been a plan."""
        return self._n_bytes > 0

    def forget(self) -> None:
        """As if there had been none."""
        self._n_bytes, self._idle = 0, []

    def take(self, design: DesignSums, found: Responses) -> Objective:
        """An objective with the response in ``found``, the caller's alone until `give_back`."""
        try:
            objective = self._idle.pop()
        except IndexError:
            return self._kept(Objective.of_response(design, found, self.reml, self.control))
        if not objective.has(found):
            objective.set_response(design, found)
        return objective

    def __del__(self) -> None:
        for objective in self._idle:
            objective.let_go()

    def give_back(self, objective: Objective) -> None:
        """Let it be taken again."""
        if (len(self._idle) + 1) * self._n_bytes <= KEPT_BYTES:
            self._idle.append(objective)

    def lent_with(self, design: DesignSums, found: Responses) -> Lent:
        """An objective as `take` gives it, inside a `with` block."""
        return Lent(self, lambda: self.take(design, found))

    def lent(self, cross: CrossProducts) -> Lent:
        """An objective of these cross-products, inside a `with` block."""
        return Lent(self, lambda: self._of(cross))

    def _of(self, cross: CrossProducts) -> Objective:
        try:
            objective = self._idle.pop()
        except IndexError:
            return self._kept(Objective(cross, self.reml, self.control))
        objective.load(cross)
        return objective

    def _kept(self, objective: Objective) -> Objective:
        """A new one; those after it have its engine."""
        made = objective.plan
        if made.engine != "none":
            self.control = with_engine(self.control, made.engine)
        self._n_bytes, self.calls_blas = made.total_bytes, objective.evaluator.calls_blas
        return objective


class Lent:
    """A `with` block that has an objective of some workspaces, and gives it back."""

    def __init__(self, workspaces: Workspaces, take: Callable[[], Objective]) -> None:
        self._workspaces, self._take = workspaces, take
        self._taken: list[Objective] = []

    def __enter__(self) -> Objective:
        self._taken.append(self._take())
        return self._taken[-1]

    def __exit__(self, *error: object) -> None:
        self._workspaces.give_back(self._taken.pop())


@lru_cache(maxsize=64)
def with_engine(control: Control, engine: str) -> Control:
    """The same options with an engine chosen."""
    return replace(control, engine=engine)


class Turn(ForkedLock):
    """A `with` block that one thread at a time is in; others wait, and a call from within the block is refused."""

    def free(self) -> None:
        """Nobody holds it."""
        super().free()
        self._reading = False

    def __enter__(self) -> None:
        self.recover()
        if self.owner == get_ident():
            raise InUseError("this model is at work in the call that led here: a callback needs a model of its own")
        super().__enter__()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A `with` block like the turn itself, which may contain others of its kind."""
        self.recover()
        if self.owner == get_ident() and self._reading:
            yield
            return
        with self:
            self._reading = True
            try:
                yield
            finally:
                self._reading = False


class TakenInTurn(ABC):
    """Base of engines that one thread at a time works with.

    A copy has a workspace of its own, and so has a forked child whose parent was at work on it in another thread: both
    are made again from `arguments`.

    Attributes
    ----------
    turn : Turn
    holder : object
        Who has set the response.
    """

    turn: Turn
    holder: object

    @property
    @abstractmethod
    def arguments(self) -> tuple[Any, ...]:
        """What it was made from."""

    def nobody_has_it(self) -> None:
        """Begin with a turn that is free, and with no response."""
        self.turn, self.holder = Turn(self), None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), self.arguments

    def renew(self, lost: bool) -> None:
        """As `Renewed.renew`."""
        if lost:  # by a fork in the middle of something
            turn = self.turn
            self.__init__(*self.arguments)  # type: ignore[misc]
            self.turn = turn
