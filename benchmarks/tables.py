"""Tables on disk, one raw file a column, so that every peer (R among them) loads the same bits without parsing text.

A folder holds `manifest.tsv` (name, kind, rows, file of each column) and the columns: "double" (float64), "integer"
(int32), "factor" and "ordered" (int32 codes from 0, with the levels one a line beside them). Little-endian throughout.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import generators
from benchmarks.problems import Problem

__all__ = ["CACHE", "read_table", "stored_table", "write_table"]

CACHE = Path(__file__).parents[1] / "build" / "benchmarks"


def stored_table(problem: Problem) -> Path:
    """Folder that holds the problem's table, made on first use; a change of sizes or generators makes another."""
    import fastlmm_core.datasets

    # data sets carry no arguments: their identity is the maker's source and their file
    source = Path(fastlmm_core.datasets.__file__).read_bytes() if not problem.size else b""
    makers = inspect.getsource(generators), inspect.getsource(problem.make), inspect.getsource(write_table)
    identity = json.dumps([problem.name, dict(problem.size), *makers], sort_keys=True)
    key = hashlib.sha256(identity.encode() + source).hexdigest()[:12]
    folder = CACHE / f"{problem.name}-{key}"
    if not folder.exists():
        # another run may be making the same table: each writes its own and the first to finish keeps the name
        draft = CACHE / f"{folder.name}.{os.getpid()}"
        write_table(problem.table(), draft)
        try:
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft)
    return folder


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write the columns of ``table`` into ``folder``."""
    folder.mkdir(parents=True)
    lines = []
    for k, name in enumerate(table.columns):
        column = table[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            kind, values = "ordered" if column.cat.ordered else "factor", column.cat.codes.to_numpy().astype("<i4")
            (folder / f"{k}.levels").write_text("".join(f"{level}\n" for level in column.cat.categories))
        elif column.dtype.kind in "iu":
            kind, values = "integer", column.to_numpy().astype("<i4")
        else:
            kind, values = "double", column.to_numpy().astype("<f8")
        values.tofile(folder / f"{k}.bin")
        lines.append(f"{name}\t{kind}\t{len(values)}\t{k}\n")
    (folder / "manifest.tsv").write_text("".join(lines))


def read_table(folder: Path) -> pd.DataFrame:
    """The table as pandas holds it after reading a file: plain columns, factors as Categorical."""
    columns: dict[str, object] = {}
    for line in (folder / "manifest.tsv").read_text().splitlines():
        name, kind, rows, k = line.split("\t")
        values = np.fromfile(folder / f"{k}.bin", "<f8" if kind == "double" else "<i4")
        if len(values) != int(rows):
            raise OSError(f"{folder / k}.bin has {len(values)} rows, not {rows}: remove the folder to make it anew")
        if sys.byteorder == "big":
            values = values.astype(values.dtype.newbyteorder("="))
        if kind in ("factor", "ordered"):
            levels = (folder / f"{k}.levels").read_text().splitlines()
            columns[name] = pd.Categorical.from_codes(values, categories=levels, ordered=kind == "ordered")
        else:
            columns[name] = values
    return pd.DataFrame(columns)
