"""What follows a fit: `python -m benchmarks.after`. Least CPU milliseconds of several runs on one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.reweight import milliseconds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main"]

INSTEVAL = ("y ~ service * dept + (1 | s) + (1 | d)", "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)")


def trial(levels: int, blocks: int, kept: float) -> pd.DataFrame:
    """Blocks of one plot a treatment, of which some are lost."""
    import pandas as pd

    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "treatment": np.tile([f"t{i:02d}" for i in range(levels)], blocks),
            "block": np.repeat(np.arange(blocks), levels),
        }
    )
    table["y"] = rng.normal(size=len(table)) + rng.normal(size=blocks)[table["block"]]
    return table.sample(frac=kept, random_state=1)


def main() -> None:
    """Print what each question costs, and what the fit did where that is the measure."""
    from fastlmm_core import Control, lmer, load_dataset
    from fastlmm_core.core import Term, fit_responses

    control, evaluations = Control(threads=1), load_dataset("InstEval")
    for formula in INSTEVAL:

        def fit() -> object:
            return lmer(formula, evaluations, control=control)  # noqa: B023

        alone = milliseconds(fit, 5)
        both = milliseconds(lambda: fit().emmeans("service", ddf="kenward-roger").to_frame(), 5)  # type: ignore[attr-defined]
        print(
            f"InstEval, {formula}: fit {alone:.0f}, Kenward-Roger means {both - alone:.0f}, {both / alone - 1:.2f} fits"
        )
    for name, kept in (("balanced", 1.0), ("15 % lost", 0.85)):
        means = lmer("y ~ treatment + (1 | block)", trial(12, 20, kept), control=control).emmeans("treatment")
        for method in ("pairwise", "trt_vs_ctrl"):
            taken = milliseconds(lambda: means.contrast(method).to_frame())  # noqa: B023
            print(f"12 treatments, {name}, {method}: {taken:.1f}")
    rng, k, n, q = np.random.default_rng(0), 1000, 300, 60
    codes, patterns = np.repeat(np.arange(q), n // q), rng.random((40, n)) < 0.02
    X = np.column_stack([np.ones(n), np.arange(n) % 2, rng.normal(size=n), np.arange(n) // 150])
    Y = rng.normal(size=(k, q))[:, codes] + rng.normal(size=(k, n))
    Y[patterns[np.arange(k) % 40]] = np.nan
    weights, one = rng.gamma(4.0, 0.25, (k, n)), Control(threads=1)
    taken = milliseconds(
        lambda: fit_responses(Y, X, [Term(codes)], weights=weights, contrasts=[[0, 1, 0, 0]], control=one), 3
    )
    print(f"a response of 300 rows with weights and 2 % missing in 40 patterns, t of a contrast: {taken / k:.3f}")


if __name__ == "__main__":
    main()
