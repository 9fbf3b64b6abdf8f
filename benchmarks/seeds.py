"""What the iterative engine calls an error, over seeds and against the exact fit: `python -m benchmarks.seeds`.

InstEval by both engines, and generalised models. Of each variance parameter (of generalised models each coefficient,
too): the error in sampling standard errors, root mean square and largest, and that of the errors over those that each
fit claims, which is one if claims are right. That ratio has itself an error, which is said with it: eight probes make
it one of Student's t, whose squares have a heavy tail.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.large import answers

__all__ = ["FORMULAS", "GENERALISED", "main", "table"]

FORMULAS = ("y ~ service + (1 | s) + (1 | d)", "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)")

GENERALISED = {
    "good ~ service + (1 | s) + (1 | d)": "binomial",
    "TICKS ~ YEAR + h + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)": "poisson",
    "y ~ x + treated + (1 | user) + (1 | item)": "binomial",
}
"""Families of some formulas; the first is whether InstEval's marks are above three."""


def rows(formula: str) -> Any:
    """The data of a formula."""
    from fastlmm_core.datasets import load_dataset

    if "user" in formula:
        return next(answers(1, users=5_000, items=500)).slice(0, 100_000)
    if "TICKS" in formula:
        data = load_dataset("grouseticks")
        return data.assign(h=(data.HEIGHT - data.HEIGHT.mean()) / data.HEIGHT.std())
    data = load_dataset("InstEval")
    return data.assign(good=(data.y.astype(float) > 3).astype(int))


def fitted(formula: str, data: Any, control: Any) -> Any:
    """A fit of one engine."""
    from fastlmm_core import glmer, lmer

    if formula in GENERALISED:
        return glmer(formula, data, GENERALISED[formula], control=control)
    return lmer(formula, data, control=control)


def table(formula: str, seeds: int) -> str:
    """The lines of one model."""
    from fastlmm_core import Control
    from fastlmm_core.errors import MonteCarloWarning

    data = rows(formula)
    exact = fitted(formula, data, Control(threads=1, tol=1e-14))  # a generalised model's search ends at 1e-8 else
    names = [*exact.theta.index, *(exact.params.index if formula in GENERALISED else [])]
    errors, over, criterion, longest, seconds = [], [], [], 0, 0.0
    for seed in range(seeds):
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MonteCarloWarning)  # it is what is looked at here
            fit = fitted(formula, data, Control(engine="iterative", seed=seed, threads=1))
        seconds += time.process_time() - start
        claims = fit.monte_carlo
        difference, claimed, sd = (fit.theta - exact.theta).to_numpy(), claims.theta_se, claims.theta_sd
        if formula in GENERALISED:
            difference = np.append(difference, fit.params - exact.params)
            claimed, sd = np.append(claimed, claims.beta_se), np.append(sd, exact.bse)
        errors.append(difference / sd)
        over.append(difference / claimed)
        criterion.append((fit.criterion - exact.criterion) / claims.criterion_se)
        longest = max(longest, claims.longest)
    size = np.sqrt(np.square(errors).mean(axis=0))
    lines = [f"{formula}: {seeds} seeds, {seconds / seeds:.2f} CPU s a fit, {longest} iterations of a solve at most"]
    for name, rms, largest, z in zip(names, size, np.abs(errors).max(axis=0), np.transpose(over), strict=True):
        lines.append(f"  {name:28s} error {rms:.2g} SE, largest {largest:.2g}; over its claim {spread(z)}")
    lines.append(f"  {'criterion':28s} error over its claim {spread(np.array(criterion))}")
    return "\n".join(lines)


def spread(z: np.ndarray) -> str:
    """Root mean square of some z-scores, and its standard error."""
    squares = z**2
    rms = np.sqrt(squares.mean())
    return f"{rms:.2f} ({squares.std(ddof=1) / np.sqrt(len(z)) / (2.0 * rms):.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=60)
    chosen = parser.parse_args(arguments)
    for formula in (*FORMULAS, *GENERALISED):
        print(table(formula, chosen.seeds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
