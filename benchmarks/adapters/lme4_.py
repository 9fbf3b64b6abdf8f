"""lme4, in its own R process: data loaded beforehand, the call to `lmer` timed inside R. The work is in `lme4.R`."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.adapters import Absent
from benchmarks.problems import Problem


def versions() -> dict[str, str]:
    """Nothing yet: the R process says which versions it has."""
    if shutil.which("Rscript") is None:
        raise Absent("Rscript is not on the PATH (Debian: apt-get install r-cran-lme4)")
    return {}


def unfit(problem: Problem, task: str) -> str:
    return "" if task in ("fit", "refit", "bootstrap") else "not timed through lme4"


def command(problem: Problem, folder: Path, task: str) -> list[str]:
    script = Path(__file__).with_name("lme4.R")
    return ["Rscript", str(script), problem.formula, "reml" if problem.reml else "ml", task, str(folder)]
