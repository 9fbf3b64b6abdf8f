"""Problems past memory, each in a process of its own: `make bench-large`, or `python -m benchmarks.large NAME ...`.

Rows are made on the fly, or written once to a Parquet folder (``--folder``) before the clock starts. A line a problem:
CPU seconds of the fit with the making of rows taken off, wall seconds with it, and the peak of memory of the fresh
process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.generators import heavy_tail

__all__ = ["PROBLEMS", "LargeProblem", "main", "panel", "ratings"]

BATCH = 500_000


@dataclass(frozen=True)
class LargeProblem:
    """A formula and rows that come in batches.

    Attributes
    ----------
    formula : str
    make : callable
        Rows to an iterator of record batches.
    n : int
        Rows when it is timed.
    files : int
        Parquet files that the rows are written to first; 0 where they are made on the fly.
    goal : str
    small : mapping
        Levels of each factor for the tests, which read one batch.
    """

    formula: str
    make: Callable[..., Iterator[Any]]
    n: int
    files: int
    goal: str
    small: Mapping[str, int] = field(default_factory=dict)


def panel(n: int, subjects: int = 100_000) -> Iterator[Any]:
    """Rows of subjects with intercepts and slopes of their own."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    b0, b1 = rng.normal(0.0, 1.0, subjects), rng.normal(0.0, 0.3, subjects)
    for _ in range(0, n, BATCH):
        g, x = rng.integers(0, subjects, BATCH), rng.standard_normal(BATCH)
        y = 1.0 + 0.5 * x + b0[g] + b1[g] * x + rng.standard_normal(BATCH)
        yield pa.RecordBatch.from_arrays([pa.array(g), pa.array(x), pa.array(y)], ["subject", "x", "y"])


def ratings(n: int, users: int = 162_541, items: int = 59_047) -> Iterator[Any]:
    """Ratings of items by users, both with heavy tails, their ids as text."""
    import pyarrow as pa

    rng = np.random.default_rng(1)
    weights = [heavy_tail(rng, users, 0.7, 0.13), heavy_tail(rng, items, 0.27, 0.002)]
    totals = [np.cumsum(w) / w.sum() for w in weights]
    effects = [rng.normal(0.0, 0.42, users), rng.normal(0.0, 0.55, items)]
    names = [pa.array([f"user-{k:07d}" for k in range(users)]), pa.array([f"item-{k:07d}" for k in range(items)])]
    for _ in range(0, n, BATCH):
        codes = [np.minimum(np.searchsorted(t, rng.random(BATCH)), len(t) - 1) for t in totals]
        x = rng.standard_normal(BATCH)
        y = 3.6 + 0.1 * x + effects[0][codes[0]] + effects[1][codes[1]] + 0.9 * rng.standard_normal(BATCH)
        ids = [of.take(pa.array(c)) for of, c in zip(names, codes, strict=True)]
        yield pa.RecordBatch.from_arrays([*ids, pa.array(x), pa.array(y)], ["user", "item", "x", "rating"])


PROBLEMS = {
    "panel-100m": LargeProblem("y ~ x + (x | subject)", panel, 100_000_000, 0, "90 s, 1 GB", {"subjects": 200}),
    "ratings-25m-files": LargeProblem(
        "rating ~ x + (1 | user) + (1 | item)", ratings, 25_000_000, 10, "60 CPU s, 1 GB", {"users": 90, "items": 40}
    ),
}


def write(problem: LargeProblem, n: int, folder: str) -> None:
    """The rows as Parquet files, unless they are there."""
    import pyarrow.parquet as pq

    if os.path.isdir(folder) and len(os.listdir(folder)) == problem.files:
        return
    os.makedirs(folder, exist_ok=True)
    writer, each = None, -(-n // problem.files)
    for k, batch in enumerate(problem.make(n)):
        part = k * BATCH // each
        path = os.path.join(folder, f"part-{part:03d}.parquet")
        if writer is None or writer.where != path:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(path, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


def run(name: str, n: int, folder: str) -> None:
    """Fit one problem in this process and print what it took."""
    from fastlmm_core import lmer

    problem = PROBLEMS[name]
    made = 0.0
    if problem.files:
        source: Any = folder
    else:

        def timed() -> Iterator[Any]:
            nonlocal made
            rows = problem.make(n)
            while True:
                start = time.process_time()
                batch = next(rows, None)
                made += time.process_time() - start
                if batch is None:
                    return
                yield batch

        source = timed()
    cpu, wall = time.process_time(), time.perf_counter()
    fit = lmer(problem.formula, source)
    text = str(fit.summary())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(text)
    print(
        f"\n{name}: {fit.nobs:,} rows, {cpu - made:.1f} CPU s (and {made:.1f} to make the rows), {wall:.1f} s of wall "
        f"clock, {peak:.2f} GiB; goal: {problem.goal}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run problems one after another, each in a fresh process; nonzero where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PROBLEMS, []], help="problems; all when left out")
    parser.add_argument("--rows", type=float, help="instead of the problem's own number")
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "fastlmm-large"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    failed = 0
    for name in chosen.names or list(PROBLEMS):
        n = int(chosen.rows or PROBLEMS[name].n)
        folder = os.path.join(chosen.folder, f"{name}-{n}")
        if chosen.here:
            run(name, n, folder)
            continue
        if PROBLEMS[name].files:
            write(PROBLEMS[name], n, folder)
        command = [
            sys.executable,
            "-m",
            "benchmarks.large",
            name,
            "--rows",
            str(n),
            "--folder",
            chosen.folder,
            "--here",
        ]
        failed += subprocess.run(command, check=False).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
