"""What the iterative engine calls an error, over seeds and against the exact fit: `python -m benchmarks.seeds`.

InstEval by both engines. Of each variance parameter: the error in sampling standard errors, root mean square and
largest, and that of the errors over those that each fit claims, which is one if claims are right. That ratio has itself
an error, which is said with it: eight probes make it one of Student's t, whose squares have a heavy tail.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

__all__ = ["FORMULAS", "main", "table"]

FORMULAS = ("y ~ service + (1 | s) + (1 | d)", "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)")


def table(formula: str, seeds: int) -> str:
    """The lines of one model."""
    from fastlmm_core import Control, lmer
    from fastlmm_core.datasets import load_dataset

    data = load_dataset("InstEval")
    exact = lmer(formula, data)
    errors, over, criterion, longest = [], [], [], 0
    start = time.process_time()
    for seed in range(seeds):
        fit = lmer(formula, data, control=Control(engine="iterative", seed=seed, threads=1))
        claims = fit.monte_carlo
        difference = (fit.theta - exact.theta).to_numpy()
        errors.append(difference / claims.theta_sd)
        over.append(difference / claims.theta_se)
        criterion.append((fit.criterion - exact.criterion) / claims.criterion_se)
        longest = max(longest, claims.longest)
    seconds = (time.process_time() - start) / seeds
    size = np.sqrt(np.square(errors).mean(axis=0))
    lines = [f"{formula}: {seeds} seeds, {seconds:.2f} CPU s a fit, {longest} iterations of a solve at most"]
    for name, rms, largest, z in zip(
        exact.theta.index, size, np.abs(errors).max(axis=0), np.transpose(over), strict=True
    ):
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
    for formula in FORMULAS:
        print(table(formula, chosen.seeds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
