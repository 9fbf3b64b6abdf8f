"""From measured series to one table: ratios by rounds, worse criteria marked, goals checked; Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.adapters import ADAPTERS, TASKS
from benchmarks.goals import GOALS, Goal
from benchmarks.runner import Series

__all__ = ["WORSE", "as_json", "goal_lines", "markdown", "ratio"]

COMPLETE = ("fit", "satterthwaite", "refit")
"""Tasks that end in a fit, whose criterion and evaluations are shown."""

WORSE = 1e-3
"""A criterion above the best one by more than this is marked; likelihood-ratio tests begin to see it."""


def ratio(numerator: Series, denominator: Series) -> tuple[float, int] | None:
    """Median over rounds of one series' seconds to another's in the same round, and the number of rounds."""
    pairs = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=False)]
    return (median(pairs), len(pairs)) if pairs else None


def find(series: Sequence[Series], problem: str, adapter: str, task: str) -> Series | None:
    """The series of that name, if it was asked for."""
    return next((s for s in series if (s.problem, s.adapter, s.task) == (problem, adapter, task)), None)


def duration(seconds: float) -> str:
    """Three significant digits with a unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            value = seconds / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    raise AssertionError


def factor(value: float) -> str:
    """A ratio as it is read: 0.52x, 3.4x, 57x."""
    return f"{value:.2f}×" if value < 1 else f"{value:.1f}×" if value < 10 else f"{value:,.0f}×"


def excess(series: Series, all_series: Sequence[Series]) -> float | None:
    """How far a fit's criterion lies above the best that any adapter reached on the problem."""
    reached = [
        s.criterion
        for s in all_series
        if (s.problem, s.task) == (series.problem, series.task) and s.criterion is not None
    ]
    return None if series.criterion is None else series.criterion - min(reached)


def row(series: Series, everything: Sequence[Series]) -> list[str]:
    """Cells of a series that has figures."""
    ours = find(everything, series.problem, ADAPTERS[0], series.task)
    against = ratio(series, ours) if ours is not None and series is not ours else None
    seconds = median(series.seconds)
    per_evaluation = duration(seconds / series.evaluations) if series.evaluations and series.task == "fit" else ""
    above = excess(series, everything) if series.task in COMPLETE else None
    criterion = "" if above is None else f"{series.criterion:.4f}"
    if above is not None and above > WORSE:
        criterion += f" **worse by {above:.2g}**"
    return [
        series.adapter,
        series.task,
        duration(seconds),
        factor(against[0]) if against else "",
        str(len(series.seconds)),
        str(series.evaluations) if series.evaluations and series.task in COMPLETE else "",
        per_evaluation,
        f"{series.peak_mb:,.0f}" if series.peak_mb is not None else "",
        criterion,
        series.note,
    ]


HEAD = (
    "adapter",
    "task",
    "time",
    "against ours",
    "rounds",
    "evaluations",
    "per evaluation",
    "peak MB",
    "criterion",
    "note",
)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose source is readable too; the first row is its head."""
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) + " |" for r in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


def goal_lines(series: Sequence[Series], goals: Sequence[Goal] = GOALS) -> list[str]:
    """The goals whose series were measured, as a table; empty where there is none."""
    rows = [("goal", "measured", "asked", "rounds", "")]
    for goal in goals:
        top, bottom = find(series, goal.problem, *goal.numerator), find(series, goal.problem, *goal.denominator)
        found = ratio(top, bottom) if top is not None and bottom is not None else None
        if found is not None:
            bound = f"at {'least' if goal.at_least else 'most'} {goal.ratio:g}×"
            rows.append(
                (goal.text, factor(found[0]), bound, str(found[1]), "met" if goal.met(found[0]) else "**missed**")
            )
    return aligned(rows) if len(rows) > 1 else []


def markdown(series: Sequence[Series], machine: dict[str, Any], problems: dict[str, Any], command: str) -> str:
    """The report: what was run on what, a table a problem, the goals, what was left out."""
    versions = {k: v for s in series for k, v in s.versions.items()}
    lines = [
        f"`{command}`",
        "",
        f"{machine['cpu']}, {machine['cpus']} processors, {machine['threads']} threads, {machine['memory_gib']} GiB;"
        f" Python {machine['python']}; commit {machine['commit']}; {machine['date']}.",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        "",
        "Times are medians of rounds in which every adapter took its turn; “against ours” is the median over rounds of",
        "its time over this package's in the same round. Peak memory is a fresh process's, with its data and program.",
    ]
    lines += ["Tasks: " + "; ".join(f"{task}: {TASKS[task]}" for task in dict.fromkeys(s.task for s in series)) + "."]
    for name in dict.fromkeys(s.problem for s in series):
        here = [s for s in series if s.problem == name]
        p = problems[name]
        formula = p.formula if len(p.formula) < 200 else p.formula[:40] + " ... " + p.formula[-40:]
        lines += ["", f"### {name}", "", f"`{formula}`, {p.criterion}; {p.note}", ""]
        rows = [row(s, series) for s in here if s.seconds]
        if rows:
            lines += aligned([HEAD, *rows])
        gaps = [f"{s.adapter} {s.task}: {s.absent}" for s in here if s.absent]
        if gaps:
            lines += ["", "Not measured: " + "; ".join(gaps) + "."]
    goals = goal_lines(series)
    if goals:
        lines += ["", "### Goals", "", *goals]
    return "\n".join(lines) + "\n"


def as_json(series: Sequence[Series], machine: dict[str, Any], command: str) -> str:
    """Every figure of a run."""
    return json.dumps({"command": command, "machine": machine, "series": [asdict(s) for s in series]}, indent=1) + "\n"
