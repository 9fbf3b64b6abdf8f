"""This package on the textbook engine: nothing eliminated beforehand, CHOLMOD's simplicial factor, all else alike.

What our own kernels gain is the ratio of the two lines.
"""

from __future__ import annotations

import pandas as pd

from benchmarks.adapters import Call
from benchmarks.adapters.fastlmm_core_ import prepared, unfit, versions
from benchmarks.problems import Problem

__all__ = ["prepare", "unfit", "versions"]


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    from fastlmm_core import Control

    return prepared(problem, table, task, control=Control(engine="cholmod"))
