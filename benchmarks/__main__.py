"""Command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.adapters import ADAPTERS, TASKS
from benchmarks.machine import available_cpus, describe
from benchmarks.problems import PROBLEMS, SHORT, Problem
from benchmarks.runner import Limits, Series, measure
from benchmarks.tables import CACHE

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time mixed-model packages on the same problems, in turn. Without arguments: the short set.",
    )
    out.add_argument(
        "--problem", "-p", action="append", metavar="NAME", help="problem, repeatable; 'all' for every one"
    )
    out.add_argument("--adapter", "-a", action="append", choices=ADAPTERS, help="package, repeatable (default: all)")
    out.add_argument("--task", "-t", action="append", choices=TASKS, help="task, repeatable (default: the problem's)")
    out.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (default 5)")
    out.add_argument("--batch", type=float, default=0.2, help="repeat short calls for so many seconds a run (0.2)")
    out.add_argument("--patience", type=float, default=900.0, help="give a single run up after so many seconds (900)")
    out.add_argument(
        "--minutes", type=float, default=float("inf"), help="for everything: fewer rounds where it is short"
    )
    out.add_argument("--threads", type=int, default=available_cpus(), help="bound on every package's threads (all)")
    out.add_argument("--criterion", choices=("reml", "ml"), help="instead of a linear problem's own")
    out.add_argument("--output", type=Path, default=CACHE / "latest", help="writes OUTPUT.md and OUTPUT.json")
    out.add_argument("--list", action="store_true", help="list problems, adapters and tasks")
    return out


def wanted(name: str, options: argparse.Namespace) -> list[tuple[str, str]]:
    """Adapter and task of each series of a problem, by task and then by adapter."""
    chosen = SHORT.get(name, ()) if not options.problem else ()
    tasks = options.task or PROBLEMS[name].tasks
    pairs = [(peer, task) for task in tasks for peer in options.adapter or PROBLEMS[name].peers or ADAPTERS]
    return [pair for pair in pairs if sensible(*pair) and (not chosen or "/".join(pair) in chosen)]


def sensible(peer: str, task: str) -> bool:
    """Whether a task belongs to an adapter at all: some exist for one only, and need no line that says so."""
    owners = {
        "fit": tuple(name for name in ADAPTERS if name != "pandas"),
        "satterthwaite": ("fastlmm_core", "lme4", "glmm"),
        "derivatives": ("fastlmm_core",),
        "evaluate": ("fastlmm_core", "cholmod"),
        "factorise": ("cholmod",),
        "read": ("pandas",),
    }
    return peer in owners.get(task, ("fastlmm_core", "lme4", "mixedlm"))


def listing() -> str:
    """Problems, adapters and tasks."""
    problems = [f"  {p.name:16}{p.note}; {', '.join(p.tasks)}" for p in PROBLEMS.values()]
    tasks = [f"  {name:16}{what}" for name, what in TASKS.items()]
    return "\n".join(["problems", *problems, "adapters", f"  {', '.join(ADAPTERS)}", "tasks", *tasks])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the report, write it. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    if options.list:
        print(listing())
        return 0
    names = list(SHORT) if not options.problem else list(PROBLEMS) if "all" in options.problem else options.problem
    if unknown := [name for name in names if name not in PROBLEMS]:
        parser().error(f"no problem is called {', '.join(unknown)}; see --list")
    end = time.perf_counter() + 60.0 * options.minutes
    problems: dict[str, Problem] = {}
    series: list[Series] = []
    command = shlex.join(["python", "-m", "benchmarks", *given])
    machine = describe(options.threads)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        # what quick problems leave of their share of the time goes to those after them
        budget = (end - time.perf_counter()) / (len(names) - place)
        limits = Limits(options.rounds, options.batch, options.patience, budget)
        chosen = options.criterion is not None and PROBLEMS[name].linear
        problems[name] = PROBLEMS[name].but(reml=options.criterion == "reml") if chosen else PROBLEMS[name]
        pairs = wanted(name, options)
        series += measure(problems[name], pairs, options.threads, limits, CACHE / "logs", progress)
        # after each problem: what has been measured is kept whatever happens next
        options.output.with_suffix(".json").write_text(report.as_json(series, machine, command))
        options.output.with_suffix(".md").write_text(report.markdown(series, machine, problems, command))
    print(options.output.with_suffix(".md").read_text())
    return 0


def progress(line: str) -> None:
    """A line on standard error: the report alone goes to standard output."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
