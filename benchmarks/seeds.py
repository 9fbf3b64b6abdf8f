"""What the iterative engine calls an error, over seeds and against the exact fit: `python -m benchmarks.seeds`.

InstEval by both engines. Of each variance parameter: the error in sampling standard errors, root mean square and
largest, and that of the errors over those that each fit claims, which is one if claims are right.
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
    spread = np.sqrt(np.square(over).mean(axis=0))
    lines = [f"{formula}: {seeds} seeds, {seconds:.2f} CPU s a fit, {longest} iterations of a solve at most"]
    for name, rms, largest, ratio in zip(exact.theta.index, size, np.abs(errors).max(axis=0), spread, strict=True):
        lines.append(f"  {name:28s} error {rms:.2g} SE, largest {largest:.2g}; over its claim {ratio:.2f}")
    lines.append(f"  {'criterion':28s} error over its claim {np.sqrt(np.square(criterion).mean()):.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    chosen = parser.parse_args(arguments)
    for formula in FORMULAS:
        print(table(formula, chosen.seeds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
