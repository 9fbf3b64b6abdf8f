"""glmmTMB, in its own R process as lme4 is; the call to `glmmTMB` alone is timed, its report of deviations included."""

from __future__ import annotations

from pathlib import Path

from benchmarks.adapters.lme4_ import r_command, versions
from benchmarks.problems import Problem

__all__ = ["command", "unfit", "versions"]


def unfit(problem: Problem, task: str) -> str:
    if task != "fit":
        return "not timed through glmmTMB"
    return "" if not problem.linear else "timed for generalised problems only"


def command(problem: Problem, folder: Path, task: str) -> list[str]:
    return r_command("glmmTMB", problem, folder, task)
