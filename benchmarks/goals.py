"""Ratios this package has set itself, each between two series of one problem, measured in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GOALS", "Goal"]

SERIES = tuple[str, str]
OURS: SERIES = ("fastlmm_core", "fit")


@dataclass(frozen=True)
class Goal:
    """A bound on the ratio of two series' times.

    Attributes
    ----------
    numerator, denominator : (adapter, task)
    ratio : float
    at_least : bool
        Whether the bound is from below.
    """

    text: str
    problem: str
    numerator: SERIES
    denominator: SERIES
    ratio: float
    at_least: bool = True

    def met(self, measured: float) -> bool:
        return measured >= self.ratio if self.at_least else measured <= self.ratio


def faster(problem: str, peer: str, ratio: float, task: str = "fit") -> Goal:
    """This package beats ``peer`` by ``ratio``."""
    return Goal(f"{problem} {task}: {peer} over ours", problem, (peer, task), ("fastlmm_core", task), ratio)


def derivatives(problem: str) -> Goal:
    text = f"{problem}: value, gradient and Hessian over a value"
    return Goal(text, problem, ("fastlmm_core", "derivatives"), ("fastlmm_core", "evaluate"), 3.5, False)


GOALS = (
    faster("insteval-3", "lme4", 50),
    faster("insteval-3", "mixedlm", 50),
    faster("insteval-slope", "lme4", 60),
    faster("sleepstudy", "mixedlm", 2),
    faster("sleepstudy", "lme4", 6),
    faster("sleepstudy", "lme4", 200, "refit"),
    faster("sleepstudy", "lme4", 200, "bootstrap"),
    faster("eight-terms", "lme4", 20),
    Goal("schools-3m: fit over reading and coding the rows", "schools-3m", OURS, ("pandas", "read"), 3, False),
    Goal("ratings-866k: fit over one plain factorisation", "ratings-866k", OURS, ("cholmod", "factorise"), 10, False),
    derivatives("insteval-3"),
    derivatives("ratings-866k"),
)
