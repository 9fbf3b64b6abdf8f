"""What the Monte Carlo error of the iterative engine's criterion leaves of a likelihood ratio."""

from __future__ import annotations

from math import hypot
from typing import TYPE_CHECKING

from fastlmm_core.errors import ModelError, MonteCarloWarning, warn

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["check_pair", "warn_of_error"]

CLEAR = 4.0
"""Monte Carlo standard errors from which on a difference of criteria is one."""


def check_pair(smaller: FittedModel, larger: FittedModel) -> None:
    """Refuse to compare criteria whose difference drowns in errors that do not cancel, and warn where they may.

    Raises
    ------
    ModelError
        One fit is exact or has other probes, and the criteria differ by less than four Monte Carlo errors.

    Warns
    -----
    MonteCarloWarning
        The probes are the same, which takes most of the error out of the difference, but it is that small.
    """
    random = [m.monte_carlo for m in (smaller, larger) if m.monte_carlo is not None]
    if not random:
        return
    error = hypot(*(found.criterion_se for found in random))
    difference = abs(smaller.criterion - larger.criterion)
    if difference >= CLEAR * error:
        return
    if len(random) < 2 or len({found.seed for found in random}) > 1:
        raise ModelError(
            f"the criteria differ by {difference:.3g}, but the iterative engine's have a Monte Carlo error of "
            f"{error:.2g}: fit both by one engine, with the same Control(seed=...), or with more probes"
        )
    warn_of_error(larger, difference)


def warn_of_error(fit: FittedModel, chisq: float) -> None:
    """MonteCarloWarning where a likelihood ratio is small beside the error of the fit's criterion."""
    if fit.monte_carlo is None:
        return
    error = fit.monte_carlo.criterion_se
    if chisq < CLEAR * error:
        warn(
            f"a likelihood ratio of {chisq:.3g} is small beside the Monte Carlo error of the criterion, {error:.2g}: "
            "its p-value says little; more probes, as in Control(probes=128), make the error smaller",
            MonteCarloWarning,
        )
