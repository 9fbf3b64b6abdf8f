"""Covariance structures at size: `python -m benchmarks.structures_large [name ...]`.

CPU seconds on one thread from a table to a result; one fit each, after a small one that loads everything. `--peers`
adds nlme, glmmTMB and mgcv, which want a `--share` of a fiftieth or so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import pin
from benchmarks.report import aligned, duration
from benchmarks.structures import of_peer, trial

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROBLEMS", "Large", "animals", "genomic", "lattice", "main", "times", "visits", "workers"]


@dataclass(frozen=True)
class Large:
    """A model and its data."""

    formula: str
    make: Callable[[float], tuple[pd.DataFrame, dict[str, Any]]]
    options: dict[str, Any] = field(default_factory=dict)
    peer: tuple[str, str] | None = None
    """A package of R and its call."""


def visits(share: float, crossed: bool) -> tuple[pd.DataFrame, dict[str, Any]]:
    """100,000 subjects of up to six visits, in 2,000 blocks or seen by 500 raters."""
    subjects = int(100_000 * share)
    data, rng = trial(subjects, 6), np.random.default_rng(2)
    q = max(4, int((500 if crossed else 2_000) * share))
    level = rng.integers(0, q, len(data)) if crossed else rng.integers(0, q, subjects)[data["subject"]]
    return data.assign(block=level, y=data["y"] + 0.5 * rng.normal(size=q)[level]), {}


def workers(share: float, far: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """200,000 workers in five years at 50,000 firms: one of twelve moves, a `far` share of them to any firm."""
    import pandas as pd

    rng, n, firms, years = np.random.default_rng(3), int(200_000 * share), int(50_000 * share), 5
    firm = np.empty((n, years), np.int64)
    firm[:, 0] = rng.integers(0, firms, n)
    near = max(2, firms // 100)
    for t in range(1, years):
        other = (firm[:, t - 1] + rng.integers(-near, near + 1, n)) % firms
        other = np.where(rng.random(n) < far, rng.integers(0, firms, n), other)
        firm[:, t] = np.where(rng.random(n) < 1.0 / 12.0, other, firm[:, t - 1])
    worker, x = np.repeat(np.arange(n), years), rng.normal(size=n * years)
    y = 0.5 * x + rng.normal(size=firms)[firm.ravel()] + 0.8 * rng.normal(size=n)[worker] + rng.normal(size=n * years)
    return pd.DataFrame({"y": y, "x": x, "firm": firm.ravel(), "worker": worker}), {}


def animals(share: float, sires: int | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Ten generations of 10,000 animals with a record each; sires of a generation, any animal where None."""
    import pandas as pd

    from fastlmm_core import pedigree

    rng, size, generations = np.random.default_rng(4), int(10_000 * share), 10
    sire, dam = np.full(size * generations, -1), np.full(size * generations, -1)
    value = rng.normal(size=size * generations)
    for g in range(1, generations):
        own, before = slice(g * size, (g + 1) * size), (g - 1) * size
        chosen = np.arange(size) if sires is None else rng.choice(size, sires, replace=False)
        sire[own], dam[own] = before + rng.choice(chosen, size), before + rng.integers(0, size, size)
        value[own] = 0.5 * (value[sire[own]] + value[dam[own]]) + np.sqrt(0.5) * value[own]
    names = np.arange(1, len(sire) + 1)
    table = pd.DataFrame({"id": names, "sire": sire + 1, "dam": dam + 1})
    y = 0.6 * value + rng.normal(size=len(names))
    data = pd.DataFrame({"animal": names, "y": y, "sex": rng.integers(0, 2, len(names))})
    return data, {"precision": {"animal": pedigree(table, "id", "sire", "dam")}}


def genomic(share: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """2,000 individuals with a record each and a dense relationship from centred markers."""
    import pandas as pd

    rng, q = np.random.default_rng(6), max(50, int(2_000 * share))
    markers = rng.binomial(2, 0.3, (q, 2 * q)).astype(float)
    markers -= markers.mean(axis=0)
    y = markers @ rng.normal(size=2 * q) * (0.8 / np.sqrt(0.42 * 2 * q)) + rng.normal(size=q)
    data = pd.DataFrame({"y": y, "x": rng.normal(size=q), "id": np.arange(q)})
    return data, {"relmat": {"id": pd.DataFrame(markers @ markers.T / (0.42 * 2 * q))}}


def lattice(share: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Three records in each of 10,000 areas of a square lattice."""
    import pandas as pd

    from fastlmm_core import neighbours

    rng, side = np.random.default_rng(7), max(5, int(100 * np.sqrt(share)))
    at = np.arange(side * side).reshape(side, side)
    pairs = np.concatenate(
        [np.stack([at[1:], at[:-1]]).reshape(2, -1), np.stack([at[:, 1:], at[:, :-1]]).reshape(2, -1)], 1
    )
    area = np.repeat(at.ravel(), 3)
    surface = np.sin(6.0 * (at // side) / side) + np.cos(6.0 * (at % side) / side)
    data = pd.DataFrame({"area": area, "x": rng.normal(size=len(area))})
    data["y"] = surface.ravel()[area] + 0.5 * data["x"] + rng.normal(size=len(area))
    return data, {"precision": {"area": neighbours(pd.DataFrame(pairs.T, columns=["a", "b"]), "a", "b")}}


def times(share: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """1,000 subjects at 50 times."""
    import pandas as pd

    rng, subjects = np.random.default_rng(5), int(1_000 * share)
    e = rng.normal(size=(subjects, 50))
    for t in range(1, 50):
        e[:, t] = 0.8 * e[:, t - 1] + 0.6 * e[:, t]
    data = {"subject": np.repeat(np.arange(subjects), 50), "time": np.tile(np.arange(50), subjects)}
    return pd.DataFrame({**data, "x": rng.normal(size=e.size), "y": e.ravel() + rng.normal(size=e.size)}), {}


AR1 = {"residual": "ar1(visit | subject)"}
LME = "lme(y ~ base + arm * visit, d, random = ~ 1 | block, correlation = corAR1(form = ~ v | block / subject))"
TMB = "glmmTMB(y ~ base + arm * visit + (1 | block) + ar1(0 + visit | subject), d, dispformula = ~ 0, REML = TRUE)"
TIMES = "glmmTMB(y ~ x + ar1(0 + time | subject), d, REML = TRUE)"
MRF = """{s <- sqrt(nlevels(d$area)); a <- 0:(s * s - 1); names(a) <- a
nb <- lapply(a, function(k) a[abs(a %/% s - k %/% s) + abs(a %% s - k %% s) == 1] + 1)
gam(y ~ x + s(area, bs = "mrf", k = s * s, xt = list(nb = nb)), data = d, method = "REML")}"""
PROBLEMS = {
    "blocks": Large("y ~ base + arm * visit + (1 | block)", lambda s: visits(s, False), AR1, ("nlme", LME)),
    "raters": Large("y ~ base + arm * visit + (1 | block)", lambda s: visits(s, True), AR1, ("glmmTMB", TMB)),
    "firms-near": Large("y ~ x + sparse(firm) + (1 | worker)", lambda s: workers(s, 0.0)),
    "firms": Large("y ~ x + sparse(firm) + (1 | worker)", lambda s: workers(s, 0.2)),
    "animals": Large("y ~ sex + (1 | animal)", lambda s: animals(s, max(2, int(200 * s)))),
    "animals-random": Large("y ~ sex + (1 | animal)", lambda s: animals(s, None)),
    "genomic": Large("y ~ x + (1 | id)", genomic),
    "lattice": Large("y ~ x + (1 | area)", lattice, peer=("mgcv", MRF)),
    "times": Large("y ~ x + ar1(0 + factor(time) | subject)", times, peer=("glmmTMB", TIMES)),
}


def measured(name: str, share: float, patience: float = 0.0, engine: str = "auto") -> list[str]:
    """One row of the table; the peer has `patience` seconds, none where that is zero."""
    from fastlmm_core import lmer
    from fastlmm_core.core import Control

    problem = PROBLEMS[name]
    data, options = problem.make(share)
    start = time.process_time()
    fit = lmer(problem.formula, data, **problem.options, **options, control=Control(engine=engine))
    took = time.process_time() - start
    row = [name, f"{len(data):,}", problem.formula, str(len(fit.fit_log)), duration(took), f"{fit.criterion:.6f}"]
    if not patience:
        return row
    if problem.peer is None:
        return [*row, "-", "-", "-"]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        data.to_csv(table, index=False)
        found = of_peer(problem.peer[1], table, patience)
    theirs = ["-", "-"] if found is None else [duration(found[0]), f"{found[1] - fit.criterion:.1e}"]
    return [*row, problem.peer[0], *theirs]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="problems; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="part of the size")
    parser.add_argument("--engine", default="auto", help="sparse or iterative, of relationships and sparse effects")
    parser.add_argument("--peers", action="store_true", help="also R's packages")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that a peer may take")
    asked = parser.parse_args()
    pin(1)
    patience = asked.patience if asked.peers else 0.0
    header = ["problem", "rows", "formula", "evaluations", "CPU time", "criterion"]
    rows = [[*header, "peer", "its time", "its criterion less ours"] if asked.peers else header]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in asked.names or PROBLEMS:
            measured(name, 0.01, 0.0)
            rows.append(measured(name, asked.share, patience, asked.engine))
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
