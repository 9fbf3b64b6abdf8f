"""pandas reading a problem's rows from a file and coding its grouping factors: what any fit of them has to wait for."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.adapters import Absent, Call, Outcome
from benchmarks.problems import Problem


def versions() -> dict[str, str]:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise Absent("pandas needs pyarrow to read Parquet files") from error
    return {"pandas": version("pandas"), "pyarrow": version("pyarrow")}


def unfit(problem: Problem, task: str) -> str:
    return "" if task == "read" else "pandas fits no models"


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    from fastlmm_core import parse_formula

    groups = [list(term.group) for term in parse_formula(problem.formula).random]
    folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
    path = Path(folder.name) / "rows.parquet"
    table.to_parquet(path)

    def run(_keep: Any = folder) -> Any:
        rows = pd.read_parquet(path)
        return rows, [rows.groupby(columns, sort=False, observed=True).ngroup().to_numpy() for columns in groups]

    return Call(run, lambda _: Outcome(note="Parquet"))
