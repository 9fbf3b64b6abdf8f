"""Measure: one fresh process a series (problem, adapter, task), runs taken in turn, never two at once."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.adapters import adapter
from benchmarks.machine import bound_environment, pin
from benchmarks.problems import Problem
from benchmarks.tables import stored_table

__all__ = ["Limits", "Series", "Worker", "measure"]

COLD = 2.0
"""A first run shorter than this, in seconds, warms caches up and is not counted; a longer one hardly profits."""


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes
    ----------
    rounds : int
        Counted runs of each series, taken in turn.
    batch : float
        Seconds for which a short call is repeated within a run; the run is the median of them.
    patience : float
        Seconds after which a single answer is given up.
    budget : float
        Seconds a problem may take: no further round begins that would, by the last one, end after them.
    """

    rounds: int = 5
    batch: float = 0.2
    patience: float = 900.0
    budget: float = float("inf")


@dataclass
class Series:
    """What was measured of one task of one adapter.

    Attributes
    ----------
    seconds : list of float
        One a round, per part of a call (see `Outcome.per`).
    absent : str
        Why there are no figures; "" where there are.
    """

    problem: str
    adapter: str
    task: str
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    criterion: float | None = None
    evaluations: int | None = None
    note: str = ""
    absent: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, answer: dict[str, Any], counted: bool) -> None:
        """Take in a worker's answer; the first one has the memory of a fresh process."""
        if self.peak_mb is None:
            self.peak_mb = answer["peak_mb"]
        self.criterion, self.evaluations, self.note = answer["criterion"], answer["evaluations"], answer["note"]
        if counted:
            self.seconds.append(middle(answer["seconds"]) / answer["per"])


def middle(values: Sequence[float]) -> float:
    """Lower median: a value that was measured."""
    return sorted(values)[(len(values) - 1) // 2]


class Worker:
    """A process that measures one series when asked; see `benchmarks.worker` for what is said.

    Parameters
    ----------
    command : list of str
    threads : int
        Bound on its threads and processors.
    path : Path, optional
        Where it imports `fastlmm_core` from.
    log : Path
        Its standard error.
    """

    def __init__(self, command: list[str], threads: int, log: Path, path: Path | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=bound_environment(threads, path),
                preexec_fn=partial(pin, threads),
            )
        self.log = log
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.put(line)
        self.lines.put("")

    def answer(self, patience: float) -> dict[str, Any]:
        """The next message; {"failed": why} where none comes in time or the process ends."""
        try:
            line = self.lines.get(timeout=patience)
        except queue.Empty:
            return {"failed": f"no answer within {patience:.0f} s"}
        if not line:
            code = self.process.wait()
            return {"failed": "killed, probably for memory" if code == -9 else f"ended with status {code}; {self.log}"}
        return json.loads(line)

    def run(self, batch: float, patience: float) -> dict[str, Any]:
        """One measurement."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{batch}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says how it ended
        return self.answer(patience)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def worker_command(problem: Problem, peer: str, task: str, folder: Path) -> list[str]:
    """The program that measures a series."""
    module = adapter(peer)
    if hasattr(module, "command"):
        return module.command(problem, folder, task)
    criterion = "reml" if problem.reml else "ml"
    return [sys.executable, "-m", "benchmarks.worker", problem.name, criterion, peer, task, str(folder)]


def opened(problem: Problem, series: Series, threads: int, limits: Limits, log: Path) -> Worker | None:
    """A worker that is ready, or None with the reason in ``series.absent``."""
    module = adapter(series.adapter)
    try:
        if hasattr(module, "command"):
            module.versions()
        series.absent = module.unfit(problem, series.task)
    except ImportError as error:
        series.absent = str(error)
    if series.absent:
        return None
    folder = stored_table(problem)
    worker = Worker(worker_command(problem, series.adapter, series.task, folder), threads, log)
    said = worker.answer(limits.patience)
    if "ready" in said:
        series.versions = said["versions"]
        return worker
    series.absent = said.get("absent") or said.get("unfit") or said["failed"]
    worker.close()
    return None


def measure(
    problem: Problem,
    wanted: Iterable[tuple[str, str]],
    threads: int,
    limits: Limits,
    logs: Path,
    say: Callable[[str], None],
) -> list[Series]:
    """Measure series of one problem in turn.

    Parameters
    ----------
    problem : Problem
    wanted : iterable of (adapter, task)
    threads : int
    limits : Limits
    logs : Path
        Folder for the workers' standard error.
    say : callable
        Takes a line of progress.

    Returns
    -------
    list of Series
        In the order wanted, those without figures included.
    """
    begin = time.perf_counter()
    out = [Series(problem.name, peer, task) for peer, task in wanted]
    workers: list[tuple[Series, Worker]] = []
    try:
        for series in out:
            log = logs / f"{problem.name}-{series.adapter}-{series.task}.log"
            worker = opened(problem, series, threads, limits, log)
            if worker is None:
                say(f"{problem.name}: {series.adapter} {series.task}: {series.absent}")
                continue
            workers.append((series, worker))
            answer = worker.run(0.0, limits.patience)
            if not taken(series, answer, "failed" not in answer and sum(answer["seconds"]) >= COLD, workers):
                say(f"{problem.name}: {series.adapter} {series.task}: {series.absent}")
                continue
            say(f"{problem.name}: {series.adapter} {series.task}: first run {answer['seconds'][0]:.4g} s")
        last = 0.0
        for number in range(limits.rounds):
            start = time.perf_counter()
            if number and start + last - begin > limits.budget:
                say(f"{problem.name}: {number} of {limits.rounds} rounds in the {limits.budget:.0f} s it has")
                break
            for series, worker in list(workers):
                if len(series.seconds) <= number:
                    taken(series, worker.run(limits.batch, limits.patience), True, workers)
            last = max(last, time.perf_counter() - start)
    finally:
        for _, worker in workers:
            worker.close()
    return out


def taken(series: Series, answer: dict[str, Any], counted: bool, workers: list[tuple[Series, Worker]]) -> bool:
    """Record an answer; a failed worker is closed and taken off the list."""
    if "failed" not in answer:
        series.add(answer, counted)
        return True
    series.absent = answer["failed"]
    series.seconds.clear()
    for pair in [pair for pair in workers if pair[0] is series]:
        pair[1].close()
        workers.remove(pair)
    return False
