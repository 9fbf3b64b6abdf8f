"""Levels of intervals and tests, and the normal quantiles that belong to them."""

from __future__ import annotations

from scipy.special import ndtri

from fastlmm_core.errors import ModelError

__all__ = ["checked_level", "quantile_of_level"]


def checked_level(level: float, what: str = "level") -> float:
    """The level of an interval or of a test as a float; ModelError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise ModelError(f"{what} must lie between 0 and 1, not {level!r}")
    return float(level)


def quantile_of_level(level: float) -> float:
    """The normal quantile of a two-sided interval; ModelError where the level is none, or the interval a point."""
    level = checked_level(level)
    if level < 1e-6:
        raise ModelError(f"an interval of level {level} is a point: level must be 0.000001 or more")
    return float(ndtri(0.5 + 0.5 * level))
