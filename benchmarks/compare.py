"""Time two commits against each other: `python -m benchmarks.compare BASE HEAD`.

Each commit is checked out in a temporary worktree and built there with this interpreter; this copy of the benchmarks
times both, in turn. A problem has regressed where the median ratio over rounds is past a relative limit and the median
difference past an absolute one: neither noise on microseconds nor a percent of a second fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.machine import ROOT, available_cpus
from benchmarks.problems import PROBLEMS
from benchmarks.report import aligned, duration
from benchmarks.runner import Series, Worker, worker_command
from benchmarks.tables import CACHE, stored_table

__all__ = ["Comparison", "main"]

DEFAULT = (
    "dyestuff",
    "sleepstudy",
    "penicillin",
    "pastes",
    "insteval-3",
    "insteval-slope",
    "eight-terms",
    "slopes-50k",
)


@dataclass
class Comparison:
    """Seconds of both commits on one problem, a pair a round.

    Attributes
    ----------
    relative, absolute : float
        Limits: ratio less one, and seconds.
    """

    problem: str
    relative: float
    absolute: float
    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def ratio(self) -> float:
        """Median over rounds of the later commit's seconds to the earlier one's."""
        return median(h / b for b, h in zip(self.base, self.head, strict=True))

    @property
    def difference(self) -> float:
        """Median over rounds of the seconds that the later commit takes more."""
        return median(h - b for b, h in zip(self.base, self.head, strict=True))

    @property
    def regressed(self) -> bool:
        return bool(self.base) and self.ratio > 1.0 + self.relative and self.difference > self.absolute

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        if self.failure:
            return (self.problem, "", "", "", f"not compared: {self.failure}")
        verdict = "**slower**" if self.regressed else ""
        return (self.problem, duration(median(self.base)), duration(median(self.head)), f"{self.ratio:.3f}", verdict)


def git(*arguments: str) -> str:
    """Output of a git command in this repository."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def build(commit: str, folder: Path) -> Path:
    """Check ``commit`` out into ``folder`` and build it; returns the folder to import from."""
    git("worktree", "add", "--detach", str(folder), commit)
    print(f"building {commit}", file=sys.stderr, flush=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "FASTLMM_DEBUG": ""}
    built = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=environment)
    if built.returncode != 0:
        raise SystemExit(f"{commit} does not build:\n{built.stderr}")
    path = folder / "python"
    seen = subprocess.run(
        [sys.executable, "-c", "import fastlmm_core.core as c; print(c.__file__)"],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if str(path) not in seen:
        raise RuntimeError(f"{commit} was built in {path}, but Python imports {seen.strip()}")
    return path


def compared(name: str, paths: tuple[Path, Path], options: argparse.Namespace) -> Comparison:
    """Both commits on one problem, in turn; who goes first alternates."""
    out = Comparison(name, options.relative, options.absolute)
    problem = PROBLEMS[name]
    command = worker_command(problem, "fastlmm_core", "fit", stored_table(problem))
    sides = [Series(name, "fastlmm_core", "fit"), Series(name, "fastlmm_core", "fit")]
    workers = [Worker(command, options.threads, CACHE / "logs" / f"compare-{k}.log", paths[k]) for k in range(2)]
    try:
        for said in [worker.answer(options.patience) for worker in workers]:
            out.failure = out.failure or said.get("unfit") or said.get("absent") or said.get("failed") or ""
        for number in range(options.rounds + 1):
            for k in (0, 1) if number % 2 else (1, 0):
                if out.failure:
                    return out
                answer = workers[k].run(options.batch if number else 0.0, options.patience)
                out.failure = answer.get("failed", "")
                if not out.failure:
                    sides[k].add(answer, counted=number > 0)
    finally:
        for worker in workers:
            worker.close()
    out.base, out.head = sides[0].seconds, sides[1].seconds
    return out


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    out.add_argument("base", metavar="BASE", help="commit to compare with")
    out.add_argument("head", metavar="HEAD", nargs="?", default="HEAD", help="commit to judge (default HEAD)")
    out.add_argument("--problem", "-p", action="append", choices=PROBLEMS, help="problem, repeatable")
    out.add_argument("--rounds", type=int, default=11, help="pairs of runs (default 11)")
    out.add_argument("--batch", type=float, default=0.2, help="repeat short fits for so many seconds a run (0.2)")
    out.add_argument("--relative", type=float, default=0.1, help="slower than this share is past the limit (0.1)")
    out.add_argument("--absolute", type=float, default=2e-4, help="and by more than so many seconds (0.0002)")
    out.add_argument("--patience", type=float, default=300.0, help="give a single run up after so many seconds (300)")
    out.add_argument("--threads", type=int, default=available_cpus(), help="bound on threads (all processors)")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; the status is 1 where a problem has regressed or could not be compared."""
    options = parser().parse_args(arguments)
    results: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
        folders = [Path(scratch) / side for side in ("base", "head")]
        try:
            paths = tuple(
                build(commit, folder) for commit, folder in zip((options.base, options.head), folders, strict=True)
            )
            for name in options.problem or DEFAULT:
                results.append(compared(name, (paths[0], paths[1]), options))
                print(" ".join(results[-1].cells()), file=sys.stderr, flush=True)
        finally:
            for folder in folders:
                subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, capture_output=True)
    print("\n".join(aligned([("problem", options.base, options.head, "ratio", ""), *(r.cells() for r in results)])))
    return int(any(r.regressed or r.failure for r in results))


if __name__ == "__main__":
    sys.exit(main())
