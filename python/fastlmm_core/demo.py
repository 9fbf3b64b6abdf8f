"""Fit a crossed model to 73,421 lecture ratings and say how long it took: `python -m fastlmm_core.demo`."""

from __future__ import annotations

import sys
import time

FORMULA = "y ~ service + (1|s) + (1|d) + (1|dept:service)"


def peak_memory() -> float | None:
    """Largest resident size of this process so far, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Fit, print the summary, the time and the memory."""
    start = time.perf_counter()
    from fastlmm_core import lmer, load_dataset

    data = load_dataset("InstEval")
    loaded = time.perf_counter()
    before = peak_memory()
    result = lmer(FORMULA, data, reml=False)
    fitted = time.perf_counter()
    after = peak_memory()
    page = str(result.summary())
    done = time.perf_counter()

    print(page)
    print()
    print(
        f"Importing and reading {len(data):,} rows took {loaded - start:.3f} s; formula, design and fit "
        f"{fitted - loaded:.3f} s; the summary, tests included, {done - fitted:.3f} s; all of it {done - start:.3f} s."
    )
    if before is not None and after is not None:
        print(f"Peak memory {after:.0f} MB, of which the fit added {after - before:.0f} MB.")


if __name__ == "__main__":
    main()
