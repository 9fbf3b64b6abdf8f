"""Two threads next to one while other processes keep the processors busy: `make bench-busy`.

Each question is timed in turn on fits with one and with two threads, beside k processes that do nothing but run. The
ratio of medians is what matters: sharing work may gain little there, but it must not cost more than half again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

LIMIT = 1.5
"""Two threads over one, at most."""

GRACE = 0.05
"""Seconds that a question may differ by whatever the ratio: a turn of the scheduler."""

FORMULA = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"


def questions(data: Any, control: Any) -> dict[str, Callable[[Any], Any]]:
    """What is asked of a fit, by name."""
    from fastlmm_core import lmer

    return {
        "fit": lambda fit: lmer(FORMULA, data, control=control(fit)),
        "summary": lambda fit: str(fit.summary()),
        "kenward-roger": lambda fit: fit.coef_table(ddf="kenward-roger"),
        "hatvalues": lambda fit: fit.hatvalues(),
        "profile": lambda fit: fit.profile(which=["sigma"]),
        "bootstrap": lambda fit: fit.bootstrap(4, seed=1),
    }


def busy(k: int) -> list[subprocess.Popen[bytes]]:
    """Start k processes that run for ever."""
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(k)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a question; nonzero where one passes the limit."""
    from fastlmm_core import Control, lmer, load_dataset

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 4], help="busy processes beside it")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    data = load_dataset("InstEval")
    fits = {threads: lmer(FORMULA, data, control=Control(threads=threads)) for threads in (1, 2)}
    worst = 0
    for k in chosen.busy:
        others = busy(k)
        try:
            print(f"{k} busy processes            one thread   two threads   ratio")
            for name, ask in questions(data, lambda fit: fit.options.control).items():
                seconds: dict[int, list[float]] = {1: [], 2: []}
                for _ in range(chosen.rounds):
                    for threads in (1, 2):
                        fit = fits[threads].refit(fits[threads].design.y)
                        begin = time.perf_counter()
                        ask(fit)
                        seconds[threads].append(time.perf_counter() - begin)
                one, two = (statistics.median(seconds[threads]) for threads in (1, 2))
                above = two > LIMIT * one + GRACE
                worst += above
                print(f"  {name:22s} {one:10.3f} s {two:11.3f} s {two / one:7.2f}{' above the limit' if above else ''}")
        finally:
            for other in others:
                other.kill()
                other.wait()
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
