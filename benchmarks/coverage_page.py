"""What the two coverage studies share: the command line, the page, and limits that a program in R computes."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.machine import ROOT, describe, pin

__all__ = ["limits_by_r", "parser", "write_page"]

Array = NDArray[np.float64]


class Named(Protocol):
    """A study."""

    @property
    def name(self) -> str: ...


class Simulated(Protocol):
    """What was simulated of it."""

    @property
    def study(self) -> Any: ...
    @property
    def draws(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def failed(self) -> Sequence[str]: ...


S = TypeVar("S", bound=Named)
O = TypeVar("O", bound=Simulated)


def parser(module: str, description: str | None, draws: int, compare: int) -> argparse.ArgumentParser:
    """The options, with their defaults."""
    out = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    out.add_argument("--draws", type=int, default=draws, help=f"responses a design ({draws})")
    out.add_argument("--seed", type=int, default=20_240_501, help="of everything drawn")
    out.add_argument(
        "--compare", type=int, default=compare, help=f"draws that lme4 computes, too ({compare}; 0 for none)"
    )
    out.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", help="folder to write to")
    return out


def write_page(
    module: str,
    title: str,
    about: str,
    given: Sequence[str],
    options: argparse.Namespace,
    studies: Iterable[S],
    simulate: Callable[[S, int], O],
    section: Callable[[O], list[str]],
    notes: str,
) -> int:
    """Simulate each study and write MODULE.md; returns the command's status.

    Parameters
    ----------
    given : sequence of str
        The command's arguments.
    simulate : callable
        A study and its place among them to an outcome.
    section : callable
        An outcome to its lines.
    """
    import fastlmm_core

    pin(1)  # fits of a few dozen rows gain nothing from threads
    machine = describe(1)
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *given])
    lines = [
        f"# {title}",
        "",
        f"`{command}`: fastlmm_core {fastlmm_core.__version__}, commit {machine['commit']}, Python"
        f" {machine['python']}; {machine['date']}; seed {options.seed}.",
        "",
        about,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # singular fits are counted
        for place, study in enumerate(studies):
            outcome = simulate(study, place)
            print(f"{study.name}: {outcome.draws} draws, {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
            for why in sorted(set(outcome.failed))[:5]:
                print(f"  {why}", file=sys.stderr)
            lines += section(outcome)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{module}.md").write_text("\n".join(lines) + "\n" + notes.rstrip() + "\n")
    return 0


def limits_by_r(program: str, model: str, rows: pd.DataFrame, responses: Array, count: int) -> Array | None:
    """Intervals of each response (draws, n), (draws, count, 2); None where R or its packages are not there.

    Parameters
    ----------
    program : str
        In R: takes a model and two files, rows and responses, and writes a line of 2 ``count`` numbers a response.
    model : str
        A formula or a family.
    """
    if shutil.which("Rscript") is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        script, *files = (Path(name) / f for f in ("peer.R", "rows.csv", "y.csv"))
        script.write_text(program)
        rows.to_csv(files[0], index=False)
        np.savetxt(files[1], responses, delimiter=",", fmt="%.17g")
        ran = subprocess.run(["Rscript", script, model, *files], capture_output=True, text=True, check=False)
    lines = [line.split(",") for line in ran.stdout.splitlines()]
    if ran.returncode or len(lines) != len(responses):
        return None
    values = [[np.nan if v.strip() in ("NA", "NaN") else float(v) for v in line] for line in lines]
    return np.array(values).reshape(len(responses), count, 2)
