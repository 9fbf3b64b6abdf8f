"""Whether two builds give the same bits: `python -m benchmarks.bits dump FILE`, then `... compare FILE OTHER`.

A dump holds theta, beta, sigma and the criterion of every problem of the tests' registry and of every golden model, by
either criterion on every engine, with the criterion's value, gradient and Hessian at a few thetas. A change that only
moves code leaves every bit as it is; what is in one dump alone is counted, not compared. A minute on one core.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import ROOT

__all__ = ["compare", "dump", "figures", "main"]

Array = NDArray[np.float64]
Figures = dict[str, Array]


def figures(small: bool = False) -> Iterator[tuple[str, Array]]:
    """Name and bits of each figure of a dump.

    Parameters
    ----------
    small : bool
        Leave InstEval out, which takes most of the time.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from fastlmm_core.core.control import ENGINES
    from golden_models import FOLDER, SMALL, golden_problem
    from problems import REGISTRY, build, thetas

    engines = [name for name in ENGINES if name != "iterative"]  # its figures are drawn, and it has no criterion
    models = {name: build(name) for name in REGISTRY} | {f"golden {name}": golden_problem(name)[0] for name in SMALL}
    for name, problem in models.items():
        for engine in engines:
            for reml in (True, False):
                key = f"{name}/{engine}/{'reml' if reml else 'ml'}"
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fit = problem.fit(reml, engine, threads=1)
                    yield from fitted(key, fit)
                    if engine == "auto":
                        continue
                    objective = problem.objective(reml, engine, threads=1)
                for label, theta in thetas(problem).items():
                    value, gradient, hessian = objective.derivatives(theta)
                    yield f"{key}/at {label}", np.concatenate([[value], gradient, hessian.ravel()])
    if small:
        return
    for path in sorted(FOLDER.glob("insteval*.json")):
        yield from formula_fit(path.stem, engines)


def formula_fit(name: str, engines: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """The figures of a golden model that is fitted from its formula."""
    from fastlmm_core import Control, lmer, load_dataset
    from golden_models import golden

    answers = golden(name)
    for engine in engines:
        fit = lmer(
            answers["py_formula"],
            load_dataset(answers["data"]),
            reml=answers["REML"],
            control=Control(engine=engine, threads=1),
            **answers["arguments"],
        )
        yield from fitted(f"golden {name}/{engine}", fit)


def fitted(key: str, fit: object) -> Iterator[tuple[str, Array]]:
    """Theta, beta, sigma and criterion of a fit, from arrays or from a formula."""
    for figure in ("theta", "beta" if hasattr(fit, "beta") else "params", "sigma", "criterion"):
        name = "beta" if figure == "params" else figure
        yield f"{key}/{name}", np.atleast_1d(np.asarray(getattr(fit, figure), dtype=np.float64))


def dump(path: Path, small: bool = False) -> int:
    """Write a dump; returns the number of its figures."""
    found: Figures = dict(figures(small))
    np.savez(path, **{key.replace("/", "|"): value for key, value in found.items()})
    return len(found)


def compare(first: Figures, second: Figures) -> list[str]:
    """A line for each figure of both that differs in a bit."""
    lines = []
    for key in [k for k in first if k in second]:
        a, b = first[key], second[key]
        if a.shape != b.shape:
            lines.append(f"{key}: shapes {a.shape} and {b.shape}")
        elif a.tobytes() != b.tobytes():
            scale = np.maximum(np.abs(a), np.finfo(float).tiny)
            lines.append(
                f"{key}: differs by up to {np.abs(b - a).max():.3g}, {np.max(np.abs(b - a) / scale):.3g} of itself"
            )
    return lines


def load(path: Path) -> Figures:
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where two dumps differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bits", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("dump", help="fit everything and write the figures")
    make.add_argument("file", type=Path)
    make.add_argument("--small", action="store_true", help="without InstEval")
    check = commands.add_parser("compare", help="compare two dumps")
    check.add_argument("files", type=Path, nargs=2)
    chosen = parser.parse_args(arguments)
    if chosen.command == "dump":
        print(f"{dump(chosen.file, chosen.small)} figures in {chosen.file}")
        return 0
    first, second = map(load, chosen.files)
    lines = compare(first, second)
    both = len(first.keys() & second.keys())
    print(*lines, sep="\n", end="\n" if lines else "")
    print(f"{both - len(lines)} of {both} figures equal; {len(first.keys() ^ second.keys())} in one dump only")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
