"""How often 95 % intervals cover: `python -m benchmarks.coverage`, a table of small unbalanced designs.

Responses are drawn from known parameters; every interval of every draw is asked whether it holds the truth. The rows,
covariates included, are the same in all draws, so that coverage is conditional on the design, as the methods claim it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.coverage_page import limits_by_r, parser, write_page
from benchmarks.report import aligned

__all__ = ["STUDIES", "Coverage", "Study", "main", "simulate_coverage"]

Array = NDArray[np.float64]

SIZES = (2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8)
"""Rows of each group."""

BETA = {"Intercept": 1.0, "x": 0.5, "w": 0.3}
SIGMA = 1.0
ASKED = (0.93, 0.97)
"""What every interval but Wald's should cover."""

COMPARED = (
    ("profile", "sd_Intercept|group"),
    ("profile", "x"),
    ("profile", "w"),
    ("Satterthwaite t", "x"),
    ("Satterthwaite t", "w"),
    ("Kenward–Roger t", "x"),
    ("Kenward–Roger t", "w"),
)
"""What lme4, lmerTest and pbkrtest compute of the first draws, in the order of `PEERS`."""

PEERS = """
suppressMessages(library(lmerTest)); options(warn = -1)
a <- commandArgs(trailingOnly = TRUE)
rows <- read.csv(a[2]); y <- as.matrix(read.csv(a[3], header = FALSE))
of <- c("x", "w")
try_limits <- function(k, expression) tryCatch(suppressMessages(expression), error = function(e) rep(NA_real_, k))
from_t <- function(m, ddf) {
  s <- coef(summary(m, ddf = ddf))[of, ]
  reach <- qt(0.975, s[, "df"]) * s[, "Std. Error"]
  c(rbind(s[, "Estimate"] - reach, s[, "Estimate"] + reach))
}
for (k in seq_len(nrow(y))) {
  rows$y <- y[k, ]
  m <- suppressMessages(lmer(as.formula(a[1]), rows))
  p <- try_limits(6, c(t(confint(as(m, "lmerMod"), parm = c(".sig01", of), method = "profile", quiet = TRUE))))
  limits <- c(p, try_limits(4, from_t(m, "Satterthwaite")), try_limits(4, from_t(m, "Kenward-Roger")))
  cat(paste(format(limits, digits = 12, trim = TRUE), collapse = ","), "\\n", sep = "")
}
"""


@dataclass(frozen=True)
class Study:
    """A design and the model it is drawn from.

    Attributes
    ----------
    formula : str
        ``x`` varies within groups, ``w`` between them.
    sd : tuple of float
        Standard deviations of the random effects, in the order of their columns.
    correlation : float
        Of intercept and slope.
    copies : int
        The groups of `SIZES` as many times over.
    """

    name: str
    formula: str
    sd: tuple[float, ...]
    correlation: float = 0.0
    copies: int = 1

    @property
    def factor(self) -> Array:
        """Cholesky factor (l, l) of the covariance of a group's effects."""
        if len(self.sd) == 1:
            return np.array([[self.sd[0]]])
        shape = np.array([[1.0, self.correlation], [self.correlation, 1.0]])
        return np.linalg.cholesky(shape * np.outer(self.sd, self.sd))

    @property
    def truth(self) -> dict[str, float]:
        """Parameters by the names that `conf_int` gives them."""
        names = ("sd_Intercept|group", "sd_x|group")
        out = {**BETA, "sigma": SIGMA, **dict(zip(names, self.sd, strict=False))}
        return out if len(self.sd) == 1 else {**out, "cor_x.Intercept|group": self.correlation}

    def rows(self, rng: np.random.Generator) -> pd.DataFrame:
        """The design: group, x, w; the response is to come."""
        sizes = np.tile(SIZES, self.copies)
        codes = np.repeat(np.arange(len(sizes)), sizes)
        w = rng.normal(size=len(sizes))
        return pd.DataFrame({"group": [f"g{k}" for k in codes], "x": rng.normal(size=len(codes)), "w": w[codes]})

    def draw(self, rng: np.random.Generator, rows: pd.DataFrame, effects: Array) -> Array:
        """A response for each row, given the random effects (n, l) of its group."""
        mean = BETA["Intercept"] + BETA["x"] * rows["x"] + BETA["w"] * rows["w"]
        z = np.column_stack([np.ones(len(rows)), rows["x"]])[:, : len(self.sd)]
        out: Array = np.asarray(mean) + (z * effects).sum(axis=1) + SIGMA * rng.normal(size=len(rows))
        return out


STUDIES = (
    Study("random intercept", "y ~ x + w + (1 | group)", (0.8,)),
    Study("random slope", "y ~ x + w + (x | group)", (0.8, 0.6), 0.3),
    Study("random intercept, four times the groups", "y ~ x + w + (1 | group)", (0.8,), copies=4),
    Study("random slope, four times the groups", "y ~ x + w + (x | group)", (0.8, 0.6), 0.3, copies=4),
)


@dataclass
class Coverage:
    """Counts of one kind of interval for one quantity.

    Attributes
    ----------
    held : list of float
        A draw's share of intervals that held the truth (0 or 1 where it has one).
    widths : list of float
    undefined : int
        Intervals without limits; they count as not covering.
    """

    method: str
    of: str
    held: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    undefined: int = 0

    def add(self, lower: Any, upper: Any, truth: Any) -> None:
        """Count the intervals of one draw."""
        lower, upper = np.atleast_1d(lower), np.atleast_1d(upper)
        self.undefined += int(np.count_nonzero(~(np.isfinite(lower) & np.isfinite(upper))))
        self.held.append(float(np.mean((lower <= truth) & (truth <= upper))))
        self.widths.append(float(np.mean(upper - lower)))

    @property
    def share(self) -> float:
        return float(np.mean(self.held))

    @property
    def error(self) -> float:
        """Monte Carlo standard error of `share`, from the spread between draws."""
        return float(np.std(self.held, ddof=1) / np.sqrt(len(self.held)))

    @property
    def verdict(self) -> str:
        """Against the bounds asked for; two standard errors decide what is certain."""
        low, high = ASKED
        if self.method == "Wald, normal":
            return ""
        if low <= self.share <= high:
            return "met"
        near = low - 2 * self.error <= self.share <= high + 2 * self.error
        return "**missed**, within the error" if near else "**missed**"


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
    spread: str


def streams(seed: int, place: int, draws: int) -> list[np.random.Generator]:
    """A generator for the design, then one a draw: draw k is the same for every number of draws."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence([seed, place]).spawn(draws + 1)]


def simulate_coverage(study: Study, draws: int, seed: int, place: int = 0, *, quick: bool = False) -> Outcome:
    """Draw, fit and count.

    Parameters
    ----------
    study : Study
    draws : int
    seed, place : int
        The seed of everything, and the study's own number under it.
    quick : bool
        The coefficients' intervals only.
    """
    from fastlmm_core import FastLMMError, lmer

    start = time.perf_counter()
    design_stream, *draw_streams = streams(seed, place, draws)
    rows = study.rows(design_stream)
    codes = pd.factorize(rows["group"])[0]
    later = rows.drop_duplicates("group").assign(x=design_stream.normal(size=codes.max() + 1))
    new = later.assign(group=[f"new{k}" for k in range(len(later))])
    counts: dict[tuple[str, str], Coverage] = {}
    singular, failed, first = np.zeros(draws, bool), [], None
    about_w = np.empty((draws, 3))
    responses, compared = np.empty((draws, len(rows))), np.full((draws, len(COMPARED), 2), np.nan)

    def count(method: str, of: str, frame: pd.DataFrame, truth: Any) -> None:
        entry = counts.setdefault((method, of), Coverage(method, of))
        entry.add(frame["lower"].to_numpy(), frame["upper"].to_numpy(), truth)

    for k, rng in enumerate(draw_streams):
        effects = rng.normal(size=(len(later), len(study.sd))) @ study.factor.T
        y = responses[k] = study.draw(rng, rows, effects[codes])
        y_later = study.draw(rng, later, effects)
        y_new = study.draw(rng, new, rng.normal(size=effects.shape) @ study.factor.T)
        first = fit = lmer(study.formula, rows.assign(y=y)) if first is None else first.refit(y)
        singular[k] = fit.is_singular
        adjusted = fit.coef_table("kenward-roger").loc["w"]
        about_w[k] = adjusted["estimate"], fit.bse["w"], adjusted["std_error"]
        intervals = {
            "Wald, normal": lambda fit=fit: fit.conf_int(parm="beta_", ddf="normal"),
            "Satterthwaite t": lambda fit=fit: fit.conf_int(parm="beta_", ddf="satterthwaite"),
            "Kenward–Roger t": lambda fit=fit: fit.conf_int(parm="beta_", ddf="kenward-roger"),
            "profile": lambda fit=fit: fit.conf_int("profile", parm="beta_" if quick else None),
        }
        for method, make in intervals.items():
            names = list(study.truth) if method == "profile" and not quick else list(BETA)
            try:
                limits = make()
            except (FastLMMError, np.linalg.LinAlgError) as error:  # an interval that cannot be had does not cover
                failed.append(f"{method}: {type(error).__name__}: {error}")
                limits = pd.DataFrame(np.nan, index=names, columns=["lower", "upper"])
            for name in names:
                count(method, name, limits.loc[[name]], study.truth[name])
            for place_of, (kind, name) in enumerate(COMPARED):
                if kind == method and name in names:
                    compared[k, place_of] = limits.loc[name]
        if not quick:
            predicted = fit.predict(new, interval="prediction", allow_new_levels=True)
            count("prediction", "new groups", predicted, y_new)
            for label, known in (("known groups", True), ("known groups, θ uncertain", False)):
                predicted = fit.predict(later, interval="prediction", theta_known=known)
                count("prediction", label, predicted, y_later)
    seconds = time.perf_counter() - start
    spread = spread_of_w(about_w, np.array(counts["Satterthwaite t", "w"].held), singular)
    return Outcome(
        study, list(counts.values()), draws, int(singular.sum()), failed, seconds, rows, responses, compared, spread
    )


def spread_of_w(about: Array, held: Array, singular: NDArray[np.bool_]) -> str:
    """Whether the standard errors of w are as large as its estimates vary, and what singular fits do to coverage.

    ``about`` (draws, 3): estimate, standard error, Kenward and Roger's; ``held`` (draws,) by Satterthwaite's interval.
    """
    plain, adjusted = np.sqrt(np.mean(about[:, 1:] ** 2, axis=0))
    said = (
        f"Coefficient w: standard deviation of the estimates {np.std(about[:, 0], ddof=1):.3f}, root mean square of the"
        f" standard errors {plain:.3f}, of Kenward and Roger's {adjusted:.3f}."
    )
    if 0 < singular.sum() < len(singular):
        said += (
            f" Satterthwaite's interval covers in {100 * held[~singular].mean():.1f} % of the regular fits and"
            f" {100 * held[singular].mean():.1f} % of the singular ones."
        )
    return said


def peer_limits(outcome: Outcome, draws: int) -> Array | None:
    """The limits `COMPARED` of the first draws by lme4 and lmerTest, (draws, 7, 2); None where R has not got them."""
    return limits_by_r(PEERS, outcome.study.formula, outcome.rows, outcome.responses[:draws], len(COMPARED))


def deviance_rises(outcome: Outcome, limits: Array) -> Array:
    """Rise of the deviance at the profile limits of x and w, (draws, 2, 2), by refits from several starts."""
    from fastlmm_core import lmer

    left, bar = outcome.study.formula.split("(")
    slopes = len(outcome.study.sd) > 1
    starts = [None, [1.0, 0.0, 1.0], [0.5, -0.3, 0.1], [0.5, 0.3, 0.1]] if slopes else [None, [1.0]]
    out = np.full((len(limits), 2, 2), np.nan)
    for k, y in enumerate(outcome.responses[: len(limits)]):
        rows = outcome.rows.assign(y=y)
        fit = lmer(outcome.study.formula, rows, reml=False)
        for j, name in enumerate(("x", "w")):
            formula = left.replace(f" {name} +", "") + "(" + bar
            for end, limit in enumerate(limits[k, COMPARED.index(("profile", name))]):
                if np.isfinite(limit):
                    held = rows.assign(y=rows["y"] - limit * rows[name])
                    found = [lmer(formula, held, reml=False, start=start).criterion for start in starts]
                    out[k, j, end] = min(found) - fit.criterion
    return out


def peer_lines(outcome: Outcome, draws: int) -> list[str]:
    """How far this package's limits are from lme4's and lmerTest's."""
    theirs = peer_limits(outcome, draws) if draws else None
    if theirs is None:
        return []
    truths = {"sd_Intercept|group": outcome.study.sd[0], **BETA}
    rows = [("limits", "of", "both have", "median difference", "largest", "cover here", "cover there")]
    for j, (method, name) in enumerate(COMPARED):
        here, there = outcome.limits[:draws, j], theirs[:, j]
        both = np.isfinite(here).all(axis=1) & np.isfinite(there).all(axis=1)
        if not both.any():
            continue
        gap = np.abs(here - there).max(axis=1)[both] / np.ptp(there, axis=1)[both]
        cover = [int(((a[both, 0] <= truths[name]) & (truths[name] <= a[both, 1])).sum()) for a in (here, there)]
        figures = (str(both.sum()), f"{100 * np.median(gap):.1g} %", f"{100 * gap.max():.2g} %", *map(str, cover))
        rows.append((method, name.replace("|", "\\|"), *figures))
    said = f"The first {draws} draws by lme4 (profile) and lmerTest with pbkrtest; differences in % of their width:"
    ends = [deviance_rises(outcome, limits[:draws]) for limits in (outcome.limits, theirs)]
    here, there = (f"{np.nanmin(e):.3f} to {np.nanmax(e):.3f}" for e in ends)
    exact = (
        "Deviance of the model refitted with x or w held at its profile limit, above the maximum-likelihood fit's;"
        f" 3.841 is exact: {here} at these limits, {there} at lme4's."
    )
    return [said, "", *aligned(rows), "", exact]


def section(outcome: Outcome, compared: int) -> list[str]:
    """Markdown of one study."""
    head = ("interval", "of", "coverage %", "s.e.", "mean width", "undefined", "93–97 %")
    rows = [
        (
            c.method,
            c.of.replace("|", "\\|"),
            f"{100 * c.share:.1f}",
            f"{100 * c.error:.2f}",
            f"{np.nanmean(c.widths):.3f}",
            str(c.undefined),
            c.verdict,
        )
        for c in outcome.table
    ]
    s = outcome.study
    n_groups = len(SIZES) * s.copies
    spread = ", ".join(f"{v:g}" for v in s.sd) + (f" (correlation {s.correlation:g})" if len(s.sd) > 1 else "")
    lines = [
        "",
        f"## {s.name}",
        "",
        f"`{s.formula}`, {len(outcome.rows)} rows in {n_groups} groups; β = {tuple(BETA.values())}, σ = {SIGMA:g},"
        f" standard deviations of the random effects {spread}. {outcome.draws:,} draws in {outcome.seconds:.0f} s;"
        f" {outcome.singular} singular fits, {len(outcome.failed)} errors.",
        "",
        *aligned([head, *rows]),
        "",
        outcome.spread,
    ]
    said = peer_lines(outcome, compared)
    return [*lines, "", *said] if said else lines


NOTES = """
## Reading it (seed 20240501)

- **Known groups, new groups**: every draw predicts a later observation in each group, and one in as many groups not in
  the data; the standard error is from the spread between draws. “θ uncertain” is `theta_known=False`.
- **Profile, coefficients**: the limits invert the likelihood-ratio test of the maximum-likelihood fit with its
  asymptotic quantile, in lme4 as here. Where few groups inform a coefficient they are too close in any implementation.
  With m equal groups and k coefficients between them the statistic is m log(1 + t² / (m - k)), t exactly Student's on
  m - k degrees of freedom, so a 95 % interval covers P(t² < (m - k)(exp(3.84 / m) - 1)):
  {exact}. What the table has for w and the intercept is to be held
  against that; with four times the groups it is gone. The fault is the method's. Where lme4's limits differ, with
  random slopes, refits with the coefficient held there say whose are exact (the line below the comparison).
- **Profile, standard deviations and correlations of random effects**: probably the same cause, as maximum likelihood
  does not count the coefficients between groups; with four times the groups they cover. With a random intercept lme4's
  limits are the same; with random slopes they differ for some draws, and which are exact there was not established.
- **Satterthwaite, w with random slopes**: lmerTest's limits are the same. Its standard error takes θ as known, and is
  smaller than the estimates vary (the line below the table); Kenward and Roger's larger one mends most of it. Singular
  fits, whose parameters on the boundary count as known, do worst. The fault is the method's, not the code's.
"""


def exact_profile(m: int, k: int = 2) -> float:
    """Coverage of a 95 % profile interval of a coefficient between ``m`` equal groups, ``k`` coefficients there."""
    from scipy.stats import chi2, t

    limit = (m - k) * np.expm1(chi2.ppf(0.95, 1) / m)
    return float(1.0 - 2.0 * t.sf(np.sqrt(limit), m - k))


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and write coverage.md."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser("coverage", __doc__, draws=2_000, compare=30).parse_args(given)
    groups = len(SIZES)
    exact = f"{100 * exact_profile(groups):.1f} % for {groups} groups, {100 * exact_profile(4 * groups):.1f} % for"

    def simulate(study: Study, place: int) -> Outcome:
        draws = max(2, options.draws // 2 if study.copies > 1 else options.draws)
        return simulate_coverage(study, draws, options.seed, place)

    def told(outcome: Outcome) -> list[str]:
        return section(outcome, min(options.compare, options.draws) if outcome.study.copies == 1 else 0)

    about = (
        f"Groups of unequal size ({SIZES[0]} to {SIZES[-1]} rows), x within groups, w between them. All but Wald's"
        " interval should cover between 93 and 97 %. Of the larger designs half as many draws are made."
    )
    notes = NOTES.format(exact=f"{exact} {4 * groups}")
    return write_page("coverage", "Coverage of 95 % intervals", about, given, options, STUDIES, simulate, told, notes)


if __name__ == "__main__":
    sys.exit(main())
