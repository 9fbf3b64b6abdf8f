"""What inference costs next to the fit, and next to lme4: `python -m benchmarks.inference`.

On InstEval each task runs on a result just fitted, so that nothing is left over from another task, and its time is
divided by that fit's. On sleepstudy this package and lme4 take turns; lme4 has one R process throughout and is timed
inside it, without start-up.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Any

from benchmarks.machine import ROOT, available_cpus, bound_environment, describe, pin
from benchmarks.problems import Problem, problem
from benchmarks.report import aligned, duration, factor

if TYPE_CHECKING:
    from fastlmm_core import LmerResult

__all__ = ["PAIRS", "TASKS", "Pair", "Task", "Timing", "main", "measure_pairs", "measure_tasks"]

LME4 = """
if (!suppressWarnings(suppressMessages(require(lme4, quietly = TRUE)))) { cat('{"absent": true}\\n'); quit(status = 0) }
options(warn = -1)
formula <- as.formula(commandArgs(trailingOnly = TRUE)[1]); data(sleepstudy)
m <- lmer(formula, sleepstudy)
everything <- function(m) c(fixef(m), getME(m, "theta"), sigma(m))
calls <- list(profile = function() confint(m, method = "profile", quiet = TRUE),
              bootstrap = function() bootMer(m, everything, nsim = 100, seed = 1))
cat(sprintf('{"lme4": "%s", "R": "%s"}\\n', packageVersion("lme4"), getRversion())); flush(stdout())
input <- file("stdin", "r")
while (length(line <- readLines(input, n = 1)) == 1) {
  gc(); start <- Sys.time()
  suppressMessages(calls[[line]]())
  cat(format(as.numeric(difftime(Sys.time(), start, units = "secs")), digits = 9), "\\n", sep = ""); flush(stdout())
}
"""

REPEAT = 0.3
"""Seconds for which a call is repeated within a round; the round is the median."""


@dataclass(frozen=True)
class Task:
    """Something asked of a fitted model, and at most how many fits it may take (None: only stated)."""

    name: str
    run: Callable[[LmerResult], Any]
    at_most: float | None = None


TASKS = (
    Task('`summary(ddf="satterthwaite")`', lambda m: str(m.summary(ddf="satterthwaite")), 3.0),
    Task('`coef_table(ddf="kenward-roger")`', lambda m: m.coef_table(ddf="kenward-roger")),
    Task("`hatvalues()`: exact leverages", lambda m: m.hatvalues(), 2.0),
    Task("`ranef()`: every level with its conditional sd", lambda m: m.ranef(), 1.0),
)


@dataclass(frozen=True)
class Pair:
    """The same done here and by lme4, in draws of ``per`` and ``their_per``; at least how many times faster."""

    name: str
    call: str
    run: Callable[[LmerResult], Any]
    per: int = 1
    their_per: int = 1
    at_least: float | None = None


PAIRS = (
    Pair("profile intervals of every parameter", "profile", lambda m: m.conf_int(method="profile"), at_least=20.0),
    Pair("bootstrap, a draw (100 here, 100 there)", "bootstrap", lambda m: m.bootstrap(100, seed=1), 100, 100),
    Pair("bootstrap, a draw (10,000 here, 100 there)", "bootstrap", lambda m: m.bootstrap(10_000, seed=1), 10_000, 100),
)


@dataclass
class Timing:
    """Seconds of a call and of what it is measured by, round by round."""

    name: str
    seconds: list[float] = field(default_factory=list)
    against: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        """Median over rounds of ``seconds`` over ``against``."""
        return median(a / b for a, b in zip(self.seconds, self.against, strict=True))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and answer of one call."""
    gc.collect()
    start = time.perf_counter()
    answer = run()
    return time.perf_counter() - start, answer


def measure_tasks(model: Problem, rounds: int, tasks: Sequence[Task] = TASKS) -> list[Timing]:
    """Each task after a fit of its own, in turn."""
    from fastlmm_core import lmer

    table = model.table()

    def fit() -> LmerResult:
        return lmer(model.formula, table, reml=model.reml)

    out = [Timing(task.name) for task in tasks]
    for task in tasks:  # imports and first touches are nobody's cost
        task.run(fit())
    for _ in range(rounds):
        for task, timing in zip(tasks, out, strict=True):
            of_fit, fitted = timed(fit)
            of_task, _answer = timed(lambda task=task, fitted=fitted: task.run(fitted))  # type: ignore[misc]
            timing.against.append(of_fit)
            timing.seconds.append(of_task)
    return out


class Lme4:
    """One R process that times a call when asked; `versions` is empty where R or lme4 is missing."""

    def __init__(self, formula: str, threads: int) -> None:
        self.versions: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        if shutil.which("Rscript") is None:
            return
        self._folder = tempfile.TemporaryDirectory()
        script = Path(self._folder.name) / "inference.R"
        script.write_text(LME4)
        self._process = subprocess.Popen(
            ["Rscript", str(script), formula],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=bound_environment(threads),
        )
        said = json.loads(self._line() or "{}")
        self.versions = {} if "absent" in said else said

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def seconds(self, call: str) -> float:
        """Time of one call, as R measures it."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(call + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def __enter__(self) -> Lme4:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._folder.cleanup()


def repeated(run: Callable[[LmerResult], Any], fit: Callable[[], LmerResult]) -> float:
    """Median seconds of a call, each on a new result, repeated for `REPEAT` seconds."""
    found: list[float] = []
    while not found or (sum(found) < REPEAT and len(found) < 50):
        fitted = fit()
        found.append(timed(lambda fitted=fitted: run(fitted))[0])  # type: ignore[misc]
    return median(found)


def measure_pairs(rounds: int, threads: int, pairs: Sequence[Pair] = PAIRS) -> tuple[list[Timing], dict[str, str]]:
    """This package and lme4 in turn; the second part is lme4's versions, empty where it is missing."""
    from fastlmm_core import lmer

    model = problem("sleepstudy")
    table = model.table()

    def fit() -> LmerResult:
        return lmer(model.formula, table)

    out = [Timing(pair.name) for pair in pairs]
    for pair in pairs:
        pair.run(fit())
    with Lme4(model.formula, threads) as peer:
        for _ in range(rounds):
            for pair, timing in zip(pairs, out, strict=True):
                timing.seconds.append(repeated(pair.run, fit) / pair.per)
                if peer.versions:
                    timing.against.append(peer.seconds(pair.call) / pair.their_per)
        return out, peer.versions


def task_lines(timings: Sequence[Timing], tasks: Sequence[Task] = TASKS) -> list[str]:
    """The first table: the fit, then each task with its ratio to the fit."""
    rows = [("", "time", "of the fit's", "asked", "")]
    rows.append(("fit, from a DataFrame", duration(median(s for t in timings for s in t.against)), "", "", ""))
    for task, timing in zip(tasks, timings, strict=True):
        ratio = timing.ratio()
        asked = "" if task.at_most is None else f"at most {task.at_most:g}×"
        met = "" if task.at_most is None else "met" if ratio <= task.at_most else "**missed**"
        rows.append((task.name, duration(median(timing.seconds)), factor(ratio), asked, met))
    return aligned(rows)


def pair_lines(timings: Sequence[Timing], pairs: Sequence[Pair] = PAIRS) -> list[str]:
    """The second table: here, in lme4, and the ratio."""
    rows = [("", "fastlmm_core", "lme4", "lme4 over ours", "asked", "")]
    for pair, timing in zip(pairs, timings, strict=True):
        here, there, ratio, met = duration(median(timing.seconds)), "not installed", "", ""
        if timing.against:
            slower = 1.0 / timing.ratio()
            there, ratio = duration(median(timing.against)), factor(slower)
            met = "" if pair.at_least is None else "met" if slower >= pair.at_least else "**missed**"
        asked = "" if pair.at_least is None else f"at least {pair.at_least:g}×"
        rows.append((pair.name, here, there, ratio, asked, met))
    return aligned(rows)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    out.add_argument("--rounds", type=int, default=9, help="rounds, the median is shown (9)")
    out.add_argument("--pairs", type=int, default=5, help="rounds next to lme4 (5)")
    out.add_argument("--small", action="store_true", help="a few hundred rows in place of InstEval, to try it out")
    out.add_argument("--threads", type=int, default=available_cpus(), help="bound on threads (all processors)")
    out.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", help="folder to write to")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write inference.md."""
    import fastlmm_core

    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    pin(options.threads)
    machine = describe(options.threads)
    model = problem("penicillin" if options.small else "insteval-3").but(reml=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = measure_tasks(model, options.rounds)
        pairs, versions = measure_pairs(options.pairs, options.threads)
    peer = ", ".join(f"{name} {version}" for name, version in versions.items()) or "lme4 not installed"
    command = shlex.join(["python", "-m", "benchmarks.inference", *given])
    lines = [
        "# Time of inference",
        "",
        f"`{command}` on {machine['cpu']}, {machine['cpus']} processors, {machine['threads']} threads; fastlmm_core"
        f" {fastlmm_core.__version__}, commit {machine['commit']}, Python {machine['python']}; {peer};"
        f" {machine['date']}.",
        "",
        f"## {model.name}",
        "",
        f"`{model.formula}`, REML, {len(model.table()):,} rows. Medians of {options.rounds} rounds; each task runs on a"
        " result just fitted, and the ratio is to that fit.",
        "",
        *task_lines(tasks),
        "",
        "## sleepstudy, next to lme4",
        "",
        f"`{problem('sleepstudy').formula}`, REML. Medians of {options.pairs} rounds in which both took their turn,"
        ' lme4 timed inside R: `confint(m, method = "profile")` and `bootMer(m, ..., nsim = 100)`.',
        "",
        *pair_lines(pairs),
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "inference.md").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
