"""Residual structures beside nlme and glmmTMB: `python -m benchmarks.structures`.

CPU seconds on one thread, reading left out: the smallest of several fits here, one fit there. R's answers are compared,
so that a time stands beside the criterion it reached; packages that are not installed, or that take longer than the
patience, leave a dash.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.machine import bound_environment, pin
from benchmarks.report import aligned, duration

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CASES", "Case", "main", "of_peer", "trial"]

R = """
file <- commandArgs(trailingOnly = TRUE)[1]; call <- commandArgs(trailingOnly = TRUE)[2]
d <- read.csv(file, stringsAsFactors = TRUE)
for (name in intersect(c("arm", "visit", "subject", "block", "area", "time"), names(d))) d[[name]] <- factor(d[[name]])
if (!is.null(d$visit)) d$v <- as.integer(d$visit)
suppressWarnings(suppressMessages({
  library(nlme); if (grepl("glmmTMB", call)) library(glmmTMB); if (grepl("gam(", call, fixed = TRUE)) library(mgcv)}))
took <- system.time(fit <- suppressWarnings(eval(parse(text = call))))
criterion <- if (inherits(fit, "gam")) 2 * fit$gcv.ubre else -2 * as.numeric(logLik(fit))
cat(sum(took[1:2]), format(criterion, digits = 12), "\\n")
"""

FORMULA = "y ~ base + arm * visit"


@dataclass(frozen=True)
class Case:
    """One structure on a trial of some size, with the calls of the peers."""

    name: str
    subjects: int
    visits: int
    residual: str
    peers: tuple[tuple[str, str], ...]


GLS = "gls(y ~ base + arm * visit, d, correlation = {}(form = ~ v | subject), weights = varIdent(form = ~ 1 | visit))"
TMB = "glmmTMB(y ~ base + arm * visit + {}(0 + visit | subject), d, dispformula = ~ 0, REML = TRUE)"
CASES = (
    Case("us", 200, 4, "us(visit | subject)", (("nlme", GLS.format("corSymm")), ("glmmTMB", TMB.format("us")))),
    Case("ar1h", 200, 4, "ar1h(visit | subject)", (("nlme", GLS.format("corAR1")),)),
    Case("us", 1_000, 10, "us(visit | subject)", (("glmmTMB", TMB.format("us")),)),
    Case("ar1h", 10_000, 6, "ar1h(visit | subject)", (("nlme", GLS.format("corAR1")),)),
    Case("us", 100_000, 6, "us(visit | subject)", ()),
)


def trial(subjects: int, visits: int, seed: int = 1) -> pd.DataFrame:
    """A trial of two arms with drop-out and missing visits."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    visit = np.tile(np.arange(visits), subjects)
    arm, base = rng.integers(0, 2, subjects), rng.normal(size=subjects)
    lag = np.abs(np.subtract.outer(np.arange(visits), np.arange(visits)))
    noise = (rng.normal(size=(subjects, visits)) @ np.linalg.cholesky(0.6**lag).T).ravel()
    y = noise * (1.0 + 0.1 * visit) + np.repeat(0.3 * base, visits) + 0.1 * visit * np.repeat(arm, visits)
    last = np.where(rng.random(subjects) < 0.2, rng.integers(1, visits, subjects), visits)
    kept = (visit < np.repeat(last, visits)) & (rng.random(len(y)) > 0.05)
    table = pd.DataFrame(
        {
            "y": y,
            "base": np.repeat(base, visits),
            "arm": np.repeat(arm, visits).astype(str),
            "visit": [f"v{v:02d}" for v in visit],
            "subject": np.repeat(np.arange(subjects), visits),
        }
    )
    table["arm"], table["visit"] = table["arm"].astype("category"), table["visit"].astype("category")
    return table[kept].reset_index(drop=True)


def cpu(call: Callable[[], object], rounds: int) -> float:
    """Smallest CPU time of a call, seconds."""
    best = np.inf
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def of_peer(call: str, table: Path, patience: float) -> tuple[float, float] | None:
    """CPU seconds and criterion of a call in R, None where there is none in time."""
    program = shutil.which("Rscript")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-e", R, str(table), call],
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
            env=bound_environment(1),
        )
    except subprocess.TimeoutExpired:
        return None
    words = done.stdout.split()
    return (float(words[0]), float(words[1])) if done.returncode == 0 and len(words) == 2 else None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that a peer may take")
    asked = parser.parse_args()
    pin(1)
    from fastlmm_core import lmer

    rows = [
        ["subjects x visits", "structure", "here", "with Satterthwaite", "peer", "its time", "its criterion less ours"]
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in CASES:
            data = trial(case.subjects, case.visits)
            table = Path(folder) / "trial.csv"
            data.to_csv(table, index=False)
            rounds = 20 if case.subjects < 1_000 else 3
            fit = lmer(FORMULA, data, residual=case.residual)
            alone = cpu(lambda d=data, c=case: lmer(FORMULA, d, residual=c.residual), rounds)
            tested = cpu(lambda d=data, c=case: lmer(FORMULA, d, residual=c.residual).coef_table(), rounds)
            ours = [f"{case.subjects:,} x {case.visits}", case.name, duration(alone), duration(tested)]
            for name, call in case.peers or (("", ""),):
                found = of_peer(call, table, asked.patience) if call else None
                theirs = ["-", "-"] if found is None else [duration(found[0]), f"{found[1] - fit.criterion:.1e}"]
                rows.append([*ours, name or "-", *theirs])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
