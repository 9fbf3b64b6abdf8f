"""Generalised models beside lme4's glmer, in CPU seconds: `python -m benchmarks.glmm_cpu`.

One thread, from a table in memory to estimates and their standard errors, which glmer's fit has; the smallest time of
twenty fits here, of three in R. CPU time is nearly the same on a busy machine. `make bench-glmm` has more problems and
packages, by the clock.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

from benchmarks.generators import contraception
from benchmarks.machine import bound_environment, pin
from benchmarks.report import aligned, duration
from benchmarks.structures import cpu

__all__ = ["CASES", "main"]

R = """
given <- commandArgs(trailingOnly = TRUE)
d <- read.csv(given[1], stringsAsFactors = TRUE)
for (name in strsplit(given[4], ",")[[1]]) d[[name]] <- factor(d[[name]])
suppressMessages(library(lme4))
took <- replicate(3, sum(system.time(
  fit <<- suppressWarnings(glmer(as.formula(given[2]), d, family = given[3])))[1:2]))
cat(min(took), format(-2 * as.numeric(logLik(fit)), digits = 12), "\\n")
"""

CASES = (
    ("cbpp", "cbind(incidence, size - incidence) ~ period + (1 | herd)", "binomial", "period,herd"),
    ("contraception", "use ~ age + age2 + urban + children + (urban | district)", "binomial", "district"),
    ("grouseticks", "TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "poisson", "YEAR,BROOD"),
)
"""Table, formula, family and the columns that R has to take for factors."""


def main() -> None:
    """Print the table."""
    pin(1)
    from fastlmm_core import glmer, load_dataset

    head = ["table", "rows", "estimates", "and standard errors", "glmer, both", "its time over ours"]
    rows = [[*head, "its criterion less ours"]]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, formula, family, factors in CASES:
            data = contraception(1_934, 60) if name == "contraception" else load_dataset(name)
            table = Path(folder) / "table.csv"
            data.to_csv(table, index=False)
            fit = glmer(formula, data, family=family)
            estimates = cpu(lambda f=formula, d=data, k=family: glmer(f, d, family=k), 20)
            ours = cpu(lambda f=formula, d=data, k=family: glmer(f, d, family=k).bse, 20)
            theirs = ["-", "-", "-"]
            if (program := shutil.which("Rscript")) is not None:
                command = [program, "-e", R, str(table), formula, family, factors]
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=bound_environment(1))
                if done.returncode == 0:
                    took, criterion = map(float, done.stdout.split())
                    theirs = [duration(took), f"{took / ours:.0f}", f"{criterion - fit.criterion:.1e}"]
            rows.append([name, f"{len(data):,}", duration(estimates), duration(ours), *theirs])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
