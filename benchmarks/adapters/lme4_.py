"""lme4, in its own R process: data loaded beforehand, the call timed inside R. The work is in `worker.R`.

`lmer` or `glmer` with their defaults (`glmer` differences its Hessian after the fit); Satterthwaite's degrees of
freedom are lmerTest's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.adapters import Absent
from benchmarks.problems import Problem

LINEAR = ("satterthwaite", "refit", "bootstrap")
"""Tasks timed for linear models only."""


def versions() -> dict[str, str]:
    """Nothing yet: the R process says which versions it has."""
    if shutil.which("Rscript") is None:
        raise Absent("Rscript is not on the PATH (Debian: apt-get install r-cran-lme4)")
    return {}


def unfit(problem: Problem, task: str) -> str:
    return "" if task == "fit" or (task in LINEAR and problem.linear) else "not timed through lme4"


def command(problem: Problem, folder: Path, task: str) -> list[str]:
    return r_command("lmerTest" if task == "satterthwaite" else "lme4", problem, folder, task)


def r_command(package: str, problem: Problem, folder: Path, task: str) -> list[str]:
    """The R worker on one package."""
    script = Path(__file__).with_name("worker.R")
    criterion = "reml" if problem.reml else "ml"
    return ["Rscript", str(script), package, problem.formula, problem.family, criterion, task, str(folder)]
