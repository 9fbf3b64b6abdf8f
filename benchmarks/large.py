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
from functools import partial
from typing import Any

import numpy as np

from benchmarks.generators import heavy_tail

__all__ = ["PROBLEMS", "LargeProblem", "answers", "crossed", "jobs", "main", "panel", "ratings", "ring"]

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
    engine : str
        As of `Control`.
    family : str
        Of a generalised model, whose rows are a table in memory; "" for a linear one.
    memory : str
        As of `stream`; "" for what it takes by itself.
    """

    formula: str
    make: Callable[..., Iterator[Any]]
    n: int
    files: int
    goal: str
    small: Mapping[str, int] = field(default_factory=dict)
    engine: str = "auto"
    family: str = ""
    memory: str = ""


def panel(n: int, subjects: int = 100_000) -> Iterator[Any]:
    """Rows of subjects with intercepts and slopes of their own."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    b0, b1 = rng.normal(0.0, 1.0, subjects), rng.normal(0.0, 0.3, subjects)
    for _ in range(0, n, BATCH):
        g, x = rng.integers(0, subjects, BATCH), rng.standard_normal(BATCH)
        y = 1.0 + 0.5 * x + b0[g] + b1[g] * x + rng.standard_normal(BATCH)
        yield pa.RecordBatch.from_arrays([pa.array(g), pa.array(x), pa.array(y)], ["subject", "x", "y"])


def ratings(
    n: int, users: int = 162_541, items: int = 59_047, *, slope: float = 0.0, contexts: int = 0
) -> Iterator[Any]:
    """Ratings of items by users, both with heavy tails, their ids as text; contexts are a third factor's."""
    import pyarrow as pa

    rng = np.random.default_rng(1)
    weights = [heavy_tail(rng, users, 0.7, 0.13), heavy_tail(rng, items, 0.27, 0.002)]
    totals = [np.cumsum(w) / w.sum() for w in weights]
    effects = [rng.normal(0.0, 0.42, users), rng.normal(0.0, 0.55, items)]
    slopes, third = rng.normal(0.0, slope, users), rng.normal(0.0, 0.2, contexts)
    names = [pa.array([f"user-{k:07d}" for k in range(users)]), pa.array([f"item-{k:07d}" for k in range(items)])]
    labels = pa.array([f"context-{k:05d}" for k in range(contexts)])
    for _ in range(0, n, BATCH):
        codes = [np.minimum(np.searchsorted(t, rng.random(BATCH)), len(t) - 1) for t in totals]
        x = rng.standard_normal(BATCH)
        y = 3.6 + 0.1 * x + effects[0][codes[0]] + effects[1][codes[1]] + 0.9 * rng.standard_normal(BATCH)
        columns = {of: ids.take(pa.array(c)) for of, ids, c in zip(("user", "item"), names, codes, strict=True)}
        if slope:
            y += slopes[codes[0]] * x
        if contexts:
            context = rng.integers(0, contexts, BATCH)
            y += third[context]
            columns["context"] = labels.take(pa.array(context))
        yield pa.RecordBatch.from_pydict({**columns, "x": pa.array(x), "rating": pa.array(y)})


def crossed(n: int, users: int = 600_000, items: int = 200_000, *, slope: float = 0.0) -> Iterator[Any]:
    """Ratings as whole numbers give them, made on the fly: heavy tails by a power of a uniform variate."""
    import pyarrow as pa

    rng = np.random.default_rng(2)
    b, c = rng.normal(0.0, 0.42, users).astype(np.float32), rng.normal(0.0, 0.55, items).astype(np.float32)
    slopes = rng.normal(0.0, slope, users).astype(np.float32) if slope else None
    for _ in range(0, n, BATCH):
        user = (users * rng.random(BATCH) ** 1.5).astype(np.int32)
        item = (items * rng.random(BATCH) ** 3).astype(np.int32)
        x = rng.standard_normal(BATCH)
        y = 3.6 + 0.1 * x + b[user] + c[item] + 0.9 * rng.standard_normal(BATCH)
        if slopes is not None:
            y += slopes[user] * x
        yield pa.RecordBatch.from_pydict({"user": pa.array(user), "item": pa.array(item), "x": x, "rating": y})


def jobs(n: int, workers: int = 1_400_000, firms: int = 100_000) -> Iterator[Any]:
    """Six years of each worker, who moves in one of twelve: mostly to a firm near by, else to one of any size."""
    import pyarrow as pa

    rng, years = np.random.default_rng(3), 6
    size = rng.pareto(1.2, firms) + 1.0
    total = np.cumsum(size) / size.sum()
    of_firm = rng.normal(0.0, 0.3, firms)
    near = max(2, firms // 100)
    share = -(-BATCH // years)
    for batch in range(-(-n // BATCH)):
        firm = np.empty((share, years), np.int64)
        firm[:, 0] = np.minimum(np.searchsorted(total, rng.random(share)), firms - 1)
        for t in range(1, years):
            far = np.minimum(np.searchsorted(total, rng.random(share)), firms - 1)
            other = np.where(
                rng.random(share) < 0.2, far, (firm[:, t - 1] + rng.integers(-near, near + 1, share)) % firms
            )
            firm[:, t] = np.where(rng.random(share) < 1.0 / 12.0, other, firm[:, t - 1])
        worker = np.arange(batch * share, (batch + 1) * share) % workers
        effect = rng.normal(0.0, 0.6, share)  # of the worker, who is in one batch only
        x = rng.standard_normal((share, years))
        y = 2.0 + 0.05 * x + effect[:, None] + of_firm[firm] + 0.5 * rng.standard_normal((share, years))
        rows = {"worker": np.repeat(worker, years), "firm": firm.ravel(), "x": x.ravel(), "wage": y.ravel()}
        yield pa.RecordBatch.from_pydict({name: pa.array(v[:BATCH]) for name, v in rows.items()})


def ring(n: int, levels: int = 2_000, rows: int = 200) -> Iterator[Any]:
    """A hard graph: who is at a place of a ring meets only what lies near by, so that far levels hardly know of each
    other; and with standard deviations of two residual ones nothing but the graph ties them down.
    """
    import pyarrow as pa

    rng, each = np.random.default_rng(4), BATCH // rows
    b = rng.normal(0.0, 2.0, levels)
    for batch in range(-(-n // BATCH)):
        place, own = rng.random(each), rng.normal(0.0, 2.0, each)
        spot = ((np.repeat(place, rows) + 0.004 * rng.standard_normal(BATCH)) % 1.0 * levels).astype(np.int32)
        x = rng.standard_normal(BATCH)
        y = 1.0 + 0.1 * x + np.repeat(own, rows) + b[spot] + rng.standard_normal(BATCH)
        who = np.repeat(np.arange(batch * each, (batch + 1) * each), rows)
        yield pa.RecordBatch.from_pydict({"who": pa.array(who), "spot": pa.array(spot), "x": x, "y": y})


def answers(n: int, users: int = 50_000, items: int = 20_000) -> Iterator[Any]:
    """Yes or no to items drawn at random: what a logistic model with crossed effects says."""
    import pyarrow as pa

    rng = np.random.default_rng(5)
    u, v = rng.normal(0.0, 0.8, users), rng.normal(0.0, 0.5, items)
    for _ in range(-(-n // BATCH)):
        user, item = rng.integers(0, users, BATCH), rng.integers(0, items, BATCH)
        x, treated = rng.standard_normal(BATCH), rng.integers(0, 2, BATCH)
        eta = -0.5 + 0.5 * x - 0.3 * treated + u[user] + v[item]
        y = (rng.random(BATCH) < 1.0 / (1.0 + np.exp(-eta))).astype(np.int8)
        yield pa.RecordBatch.from_pydict({"user": user, "item": item, "x": x, "treated": treated, "y": y})


RATINGS = "rating ~ x + (1 | user) + (1 | item)"
FEW = {"users": 90, "items": 40}

PROBLEMS = {
    "panel-100m": LargeProblem("y ~ x + (x | subject)", panel, 100_000_000, 0, "90 s, 1 GB", {"subjects": 200}),
    "ratings-25m-files": LargeProblem(RATINGS, ratings, 25_000_000, 10, "60 CPU s, 1 GB", FEW),
    "ratings-25m-slope": LargeProblem(
        "rating ~ x + (x | user) + (1 | item)", partial(ratings, slope=0.1), 25_000_000, 10, "150 CPU s", FEW
    ),
    "ratings-25m-three": LargeProblem(
        "rating ~ x + (1 | user) + (1 | item) + (1 | context)",
        partial(ratings, contexts=5_000),
        25_000_000,
        10,
        "150 CPU s",
        {**FEW, "contexts": 20},
    ),
    "jobs-8m": LargeProblem(
        "wage ~ x + (1 | worker) + (1 | firm)", jobs, 8_400_000, 0, "60 CPU s", {"workers": 900_000, "firms": 50}
    ),
    "crossed-100m": LargeProblem(RATINGS, crossed, 100_000_000, 0, "5 minutes on two cores, 2 GB", FEW),
    "crossed-10m-files": LargeProblem(
        "rating ~ x + (x | user) + (1 | item)",
        partial(crossed, users=60_000, items=20_000, slope=0.1),
        10_000_000,
        0,
        "200 MB beyond the interpreter",
        FEW,
        engine="iterative",
        memory="200 MB",
    ),
    "ring-1m": LargeProblem(
        "y ~ x + (1 | who) + (1 | spot)",
        ring,
        1_000_000,
        0,
        "under 30 iterations a solve",
        {"levels": 30},
        engine="iterative",
    ),
    "logistic-1m": LargeProblem(
        "y ~ x + treated + (1 | user) + (1 | item)", answers, 1_000_000, 0, "60 CPU s", FEW, family="binomial"
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


def run(name: str, n: int, folder: str, memory: str) -> None:
    """Fit one problem in this process and print what it took."""
    from fastlmm_core import Control, glmer, lmer, stream

    problem = PROBLEMS[name]
    memory = memory or problem.memory
    made = 0.0
    if problem.files:
        source: Any = folder
    elif problem.family:
        import pyarrow as pa

        source = pa.Table.from_batches(problem.make(n))
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
    if not problem.family:
        source = stream(source, memory=memory or None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu, wall = time.process_time(), time.perf_counter()
    control = Control(engine=problem.engine)
    if problem.family:
        fit: Any = glmer(problem.formula, source, problem.family, control=control)
    else:
        fit = lmer(problem.formula, source, control=control)
    text = str(fit.summary())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(text)
    print(fit.engine_report())
    print(f"theta {', '.join(map(repr, fit.theta.tolist()))}; criterion {fit.criterion!r}")
    if fit.monte_carlo is not None:
        print(
            f"{fit.monte_carlo}; {fit.monte_carlo.iterations} iterations, {fit.monte_carlo.longest} the most of a solve"
            f", {fit.monte_carlo.products} products, {fit.monte_carlo.evaluations} evaluations"
        )
    print(
        f"\n{name}: {fit.nobs:,} rows, {cpu - made:.1f} CPU s (and {made:.1f} to make the rows), {wall:.1f} s of wall "
        f"clock, {peak:.2f} GiB, {1024 * (peak - before):.0f} MiB of them since the fit began; goal: {problem.goal}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run problems one after another, each in a fresh process; nonzero where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PROBLEMS, []], help="problems; all when left out")
    parser.add_argument("--rows", type=float, help="instead of the problem's own number")
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "fastlmm-large"))
    parser.add_argument("--memory", default="", help="as of `stream`, instead of the problem's own")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    failed = 0
    for name in chosen.names or list(PROBLEMS):
        n = int(chosen.rows or PROBLEMS[name].n)
        folder = os.path.join(chosen.folder, f"{name}-{n}")
        if chosen.here:
            run(name, n, folder, chosen.memory)
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
            "--memory",
            chosen.memory,
            "--here",
        ]
        failed += subprocess.run(command, check=False).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
