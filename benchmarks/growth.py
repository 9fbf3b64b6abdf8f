"""How time grows with rows and with levels: `python -m benchmarks.growth`, a table, a plot and the figures.

Rows grow over fixed levels: coding and the pass over the rows grow with them, optimisation does not, once the rows show
most pairs of levels. Levels grow with ten rows each: one factor with slopes and nested factors grow in proportion; two
crossed factors, whose Schur complement is dense, with the cube of the smaller one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks import generators
from benchmarks.machine import ROOT, available_cpus, describe, pin
from benchmarks.phases import Phases, phases
from benchmarks.problems import Problem
from benchmarks.report import aligned, duration

__all__ = ["LADDERS", "Ladder", "Step", "main"]


@dataclass(frozen=True)
class Ladder:
    """One structure at growing sizes.

    Attributes
    ----------
    axis : {"rows", "levels"}
        What grows.
    sizes : tuple of int
        Values along the axis.
    """

    name: str
    axis: str
    formula: str
    sizes: tuple[int, ...]

    def problem(self, size: int) -> Problem:
        """The model at one size."""
        make, arguments = STRUCTURES[self.name](size)
        return Problem(self.name, self.formula, make, size=arguments)


@dataclass(frozen=True)
class Step:
    """One size of a ladder, measured."""

    ladder: str
    rows: int
    levels: int
    evaluations: int
    phases: Phases


STRUCTURES: dict[str, Callable[[int], tuple[Callable[..., Any], dict[str, int]]]]
STRUCTURES = {
    "crossed, rows": lambda n: (lambda rows: generators.crossed(rows, 300, 100), {"rows": n}),
    "slopes, rows": lambda n: (generators.slopes, {"n_groups": 1_000, "per_group": n // 1_000}),
    "slopes, levels": lambda q: (generators.slopes, {"n_groups": q, "per_group": 10}),
    "nested, levels": lambda q: (generators.schools, {"n_students": 10 * q, "per_class": 10}),
    "crossed, levels": lambda q: (lambda side: generators.crossed(10 * side, side - side // 4, side // 4), {"side": q}),
}
LADDERS = (
    Ladder(
        "crossed, rows", "rows", "y ~ x + (1|g0) + (1|g1)", (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)
    ),
    Ladder("slopes, rows", "rows", "y ~ x + (x|g)", (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)),
    Ladder("slopes, levels", "levels", "y ~ x + (x|g)", (1_000, 3_000, 10_000, 30_000, 100_000)),
    Ladder(
        "nested, levels", "levels", "score ~ ses + (1|district/school/class_)", (1_000, 3_000, 10_000, 30_000, 100_000)
    ),
    Ladder("crossed, levels", "levels", "y ~ x + (1|g0) + (1|g1)", (400, 1_200, 4_000, 12_000)),
)


def climb(ladder: Ladder, largest: int, rounds: int) -> list[Step]:
    """Measure a ladder up to ``largest`` rows."""
    from fastlmm_core import build_design

    steps = []
    for size in ladder.sizes:
        problem = ladder.problem(size)
        table = problem.table()
        if len(table) > largest:
            break
        levels = sum(len(term.level_set) for term in build_design(problem.formula, table).random)
        measured, evaluations = phases(problem, table, rounds)
        steps.append(Step(ladder.name, len(table), levels, evaluations, measured))
        print(
            f"{ladder.name}: {len(table):,} rows, {levels:,} levels: {measured.total:.3f} s",
            file=sys.stderr,
            flush=True,
        )
    return steps


def table_lines(steps: Sequence[Step]) -> list[str]:
    """A Markdown table of one ladder's steps."""
    names = [f.name.replace("_", " ") for f in fields(Phases)]
    head = ("rows", "levels", *names, "total", "evaluations", "per evaluation")
    rows = [
        (
            f"{s.rows:,}",
            f"{s.levels:,}",
            *(duration(getattr(s.phases, f.name)) for f in fields(Phases)),
            duration(s.phases.total),
            str(s.evaluations),
            duration(s.phases.optimise / s.evaluations),
        )
        for s in steps
    ]
    return aligned([head, *rows])


def plot(steps: Sequence[Step], path: Path) -> None:
    """Time against rows and against levels, logarithmic, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 2), ("rows", "levels"), strict=True):
        for ladder in (l for l in LADDERS if l.axis == axis):
            mine = [s for s in steps if s.ladder == ladder.name]
            x = [getattr(s, axis) for s in mine]
            label = ladder.name.partition(",")[0]
            (line,) = axes.plot(x, [s.phases.total for s in mine], "o-", label=f"{label}: whole fit")
            optimise = [s.phases.optimise for s in mine]
            axes.plot(x, optimise, "s--", color=line.get_color(), alpha=0.7, label=f"{label}: optimum only")
        what = "rows, levels fixed" if axis == "rows" else "levels, ten rows each"
        axes.set(xscale="log", yscale="log", xlabel=what, ylabel="seconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    # without a date in the file, an unchanged plot is an unchanged file
    figure.savefig(path, metadata={"Date": None})


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    out.add_argument("--largest", type=int, default=3_000_000, help="rows of the largest table (3000000)")
    out.add_argument("--rounds", type=int, default=3, help="fits of each size, the median is shown (3)")
    out.add_argument("--threads", type=int, default=available_cpus(), help="bound on threads (all processors)")
    out.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", help="folder to write to")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write growth.md, growth.svg and growth.json."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    pin(options.threads)  # a fit takes as many threads as there are processors for it
    machine = describe(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.growth", *given])
    lines = [
        "# Growth of time with rows and with levels",
        "",
        f"`{command}` on {machine['cpu']}, {machine['threads']} threads; commit {machine['commit']},"
        f" {machine['date']}.",
        f"Medians of {options.rounds} fits; each column is one step of a fit.",
        "",
        "![time against rows and against levels](growth.svg)",
    ]
    steps: list[Step] = []
    for ladder in LADDERS:
        mine = climb(ladder, options.largest, options.rounds)
        steps += mine
        if mine:
            lines += ["", f"## {ladder.name}", "", f"`{ladder.formula}`", "", *table_lines(mine)]
    plot(steps, options.output / "growth.svg")
    (options.output / "growth.md").write_text("\n".join(lines) + "\n")
    figures = {"command": command, "machine": machine, "steps": [asdict(s) for s in steps]}
    (options.output / "growth.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
