"""How often 95 % intervals of generalised fits cover: `python -m benchmarks.coverage_glmm`, a table a family.

Responses are drawn from known parameters on fixed rows; every interval of every draw is asked whether it holds the
truth. Of the first draws lme4 computes the profile limits, too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.coverage import ASKED, Coverage, streams
from benchmarks.coverage_page import limits_by_r, parser, write_page
from benchmarks.report import aligned

__all__ = ["STUDIES", "Study", "main", "simulate_coverage"]

Array = NDArray[np.float64]

FORMULA = "y ~ x + w + (1 | group)"
COMPARED = ("sd_Intercept|group", "x", "w")
"""What lme4 profiles, in its order."""

PEER = """
suppressMessages(library(lme4)); options(warn = -1)
a <- commandArgs(trailingOnly = TRUE)
rows <- read.csv(a[2]); y <- as.matrix(read.csv(a[3], header = FALSE))
for (k in seq_len(nrow(y))) {
  rows$y <- y[k, ]
  p <- tryCatch(suppressMessages({
    m <- glmer(y ~ x + w + (1 | group), rows, family = a[1])
    c(t(confint(m, parm = c(".sig01", "x", "w"), method = "profile", quiet = TRUE)))
  }), error = function(e) rep(NA_real_, 6))
  cat(paste(format(p, digits = 12, trim = TRUE), collapse = ","), "\\n", sep = "")
}
"""


@dataclass(frozen=True)
class Study:
    """A family and the model its responses are drawn from.

    Attributes
    ----------
    family : str
    groups, size : int
        Groups, and rows of each.
    beta : (float, float, float)
        Intercept, x within groups, w between them.
    sd : float
        Of the groups' effects.
    alpha : float, optional
        Overdispersion of the negative binomial.
    """

    name: str
    family: str
    groups: int
    size: int
    beta: tuple[float, float, float]
    sd: float
    alpha: float | None = None

    @property
    def truth(self) -> dict[str, float]:
        """Parameters by the names that `conf_int` gives them."""
        out = {"sd_Intercept|group": self.sd, **dict(zip(("Intercept", "x", "w"), self.beta, strict=True))}
        return out if self.alpha is None else {**out, "alpha": self.alpha}

    def rows(self, rng: np.random.Generator) -> pd.DataFrame:
        """Group, x, w; the response is to come."""
        codes = np.repeat(np.arange(self.groups), self.size)
        w = rng.normal(size=self.groups)[codes]
        return pd.DataFrame({"group": [f"g{k}" for k in codes], "x": rng.normal(size=len(codes)), "w": w})

    def draw(self, rng: np.random.Generator, rows: pd.DataFrame) -> tuple[Array, Array]:
        """A response and the linear predictor of each row."""
        b = np.repeat(self.sd * rng.normal(size=self.groups), self.size)
        eta = self.beta[0] + self.beta[1] * rows["x"].to_numpy() + self.beta[2] * rows["w"].to_numpy() + b
        if self.family == "binomial":
            return (rng.random(len(eta)) < 1.0 / (1.0 + np.exp(-eta))).astype(float), eta
        mu = np.exp(eta)
        if self.alpha is not None:
            mu = rng.gamma(1.0 / self.alpha, self.alpha * mu)
        return rng.poisson(mu).astype(float), eta

    def marginal(self, eta: Array) -> Array:
        """Mean over all groups where the fixed part is ``eta``."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(61)
        at = eta[:, None] + self.sd * nodes
        mean = 1.0 / (1.0 + np.exp(-at)) if self.family == "binomial" else np.exp(at)
        return np.asarray(mean @ weights / weights.sum())


STUDIES = (
    Study("binary", "binomial", 40, 12, (-0.3, 0.6, 0.5), 0.9),
    Study("binary, few rows a group", "binomial", 60, 4, (-0.3, 0.6, 0.5), 0.9),
    Study("Poisson", "poisson", 24, 6, (0.5, 0.3, 0.4), 0.6),
    Study("Poisson, four times the groups", "poisson", 96, 6, (0.5, 0.3, 0.4), 0.6),
    Study("negative binomial", "negativebinomial", 30, 10, (1.0, 0.3, 0.4), 0.6, 0.5),
)


@dataclass(frozen=True)
class Outcome:
    """One study, counted."""

    study: Study
    table: list[Coverage]
    draws: int
    singular: int
    failed: list[str]
    seconds: float
    rows: pd.DataFrame
    responses: Array
    limits: Array


def simulate_coverage(study: Study, draws: int, seed: int, place: int = 0, *, boot: int = 199) -> Outcome:
    """Draw, fit and count.

    Parameters
    ----------
    study : Study
    draws : int
    seed, place : int
        The seed of everything, and the study's own number under it.
    boot : int
        Draws of each bootstrap.
    """
    from fastlmm_core import glmer

    start = time.perf_counter()
    design_stream, *draw_streams = streams(seed, place, draws)
    rows = study.rows(design_stream)
    later = rows.drop_duplicates("group").reset_index(drop=True)
    fixed = study.beta[0] + study.beta[1] * later["x"].to_numpy() + study.beta[2] * later["w"].to_numpy()
    truths = {"population": fixed, "marginal": study.marginal(fixed)}
    if study.family == "binomial":
        truths["population"] = 1.0 / (1.0 + np.exp(-fixed))
    else:
        truths["population"] = np.exp(fixed)
    counts: dict[tuple[str, str], Coverage] = {}
    failed, singular, fit = [], 0, None
    responses, limits = np.empty((draws, len(rows))), np.full((draws, len(COMPARED), 2), np.nan)

    def count(method: str, of: str, lower: Any, upper: Any, truth: Any) -> None:
        counts.setdefault((method, of), Coverage(method, of)).add(lower, upper, truth)

    for k, rng in enumerate(draw_streams):
        y, eta = study.draw(rng, rows)
        responses[k] = y
        fit = glmer(FORMULA, rows.assign(y=y), study.family) if fit is None else fit.refit(y)
        singular += fit.is_singular
        ways = {"Wald": {}, "profile": {}, "boot": {"n": boot, "seed": int(rng.integers(1 << 31))}}
        for method, options in ways.items():
            names = [n for n in study.truth if method != "Wald" or n in ("Intercept", "x", "w")]
            try:
                found = fit.conf_int(method.lower(), parm=names, **options)
            except Exception as error:  # an interval that cannot be had does not cover
                failed.append(f"{method}: {type(error).__name__}: {error}")
                found = pd.DataFrame(np.nan, index=names, columns=["lower", "upper"])
            for name in names:
                low, high = found.loc[name, ["lower", "upper"]].astype(float)
                count(method, name, low, high, study.truth[name])
                if method == "profile" and name in COMPARED:
                    limits[k, COMPARED.index(name)] = low, high
        for kind, truth in truths.items():
            at = fit.predict(later, kind=kind, interval="confidence")
            count("prediction", kind, at["lower"], at["upper"], truth)
        known = fit.predict(kind="link", interval="confidence")
        count("prediction", "known groups", known["lower"], known["upper"], eta)
    seconds = time.perf_counter() - start
    return Outcome(study, list(counts.values()), draws, singular, failed, seconds, rows, responses, limits)


def peer_limits(outcome: Outcome, draws: int) -> Array | None:
    """lme4's profile limits of the first draws (draws, 3, 2); None where R has not got it, or the family is none."""
    if outcome.study.alpha is not None:
        return None
    return limits_by_r(PEER, outcome.study.family, outcome.rows, outcome.responses[:draws], len(COMPARED))


def peer_lines(outcome: Outcome, draws: int) -> list[str]:
    """How far this package's profile limits are from lme4's."""
    theirs = peer_limits(outcome, draws) if draws else None
    if theirs is None:
        return []
    rows = [("profile", "both have", "median difference", "largest", "cover here", "cover there")]
    for j, name in enumerate(COMPARED):
        here, there = outcome.limits[:draws, j], theirs[:, j]
        both = np.isfinite(here).all(axis=1) & np.isfinite(there).all(axis=1)
        if not both.any():
            continue
        gap = np.abs(here - there).max(axis=1)[both] / np.ptp(there, axis=1)[both]
        truth = outcome.study.truth[name]
        cover = [str(int(((a[both, 0] <= truth) & (truth <= a[both, 1])).sum())) for a in (here, there)]
        figures = (str(both.sum()), f"{100 * np.median(gap):.1g} %", f"{100 * gap.max():.2g} %")
        rows.append((name.replace("|", "\\|"), *figures, *cover))
    return ["", f"The first {draws} draws by lme4; differences in % of the width:", "", *aligned(rows)]


def section(outcome: Outcome, compared: int) -> list[str]:
    """Markdown of one study."""
    low, high = ASKED
    rows = [("interval", "of", "coverage %", "s.e.", "mean width", "undefined", "93–97 %")]
    for c in outcome.table:
        near = low - 2 * c.error <= c.share <= high + 2 * c.error
        verdict = "met" if low <= c.share <= high else "missed, within the error" if near else "**missed**"
        figures = (f"{100 * c.share:.1f}", f"{100 * c.error:.2f}", f"{np.nanmean(c.widths):.3f}", str(c.undefined))
        rows.append((c.method, c.of.replace("|", "\\|"), *figures, verdict))
    s = outcome.study
    alpha = "" if s.alpha is None else f", α = {s.alpha:g}"
    return [
        "",
        f"## {s.name}",
        "",
        f"{len(outcome.rows)} rows in {s.groups} groups; β = {s.beta}, sd {s.sd:g}{alpha}. {outcome.draws:,} draws;"
        f" {outcome.singular} singular fits, {len(outcome.failed)} errors.",
        "",
        *aligned(rows),
        *peer_lines(outcome, compared),
    ]


NOTES = """
## Reading it (seed 20240501)

- A hundred draws tell no more than two to four per cent; the last column says which misses are larger than that. In the
  larger Poisson design 800 draws of the same seed gave 94.1, 95.0 and 93.4 % for Wald's intervals of Intercept, x and
  w, where the first hundred have 91, 87 and 93.
- **Bootstrap, standard deviations of groups** (and negative binomial w): percentiles of estimates that are biased
  downwards are biased twice over. Maximum likelihood does not count the coefficients between groups, and binary rows
  add Laplace's own bias; with 96 groups it is gone. Profiles do better, and are lme4's to a thousandth of their
  width.
- **Known groups with four binary rows**: the modes' intervals take the likelihood of a group for normal at its mode and
  theta's standard error for all its uncertainty; which of the two matters was not established.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and write coverage_glmm.md."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser("coverage_glmm", __doc__, draws=1_000, compare=20)
    options.add_argument("--boot", type=int, default=199, help="draws of each bootstrap (199)")
    chosen = options.parse_args(given)

    def simulate(study: Study, place: int) -> Outcome:
        return simulate_coverage(study, chosen.draws, chosen.seed, place, boot=chosen.boot)

    def told(outcome: Outcome) -> list[str]:
        return section(outcome, min(chosen.compare, chosen.draws))

    about = (
        f"`{FORMULA}`: x within groups, w between them. Bootstrap: percentiles of {chosen.boot} draws. Predictions:"
        " confidence intervals of the mean of an average group, of the mean over all groups, and of the linear"
        " predictors of the groups in the data; their standard error is from the spread between draws."
    )
    title = "Coverage of 95 % intervals of generalised fits"
    return write_page("coverage_glmm", title, about, given, chosen, STUDIES, simulate, told, NOTES)


if __name__ == "__main__":
    sys.exit(main())
