"""Intervals and interaction lines of `Estimates`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.inference.estimate_contrasts import show
from fastlmm_core.plots.canvas import canvas

if TYPE_CHECKING:
    from fastlmm_core.inference.estimates import Estimates

__all__ = ["draw"]


def draw(estimates: Estimates, kind: str, *, x: str | None, trace: str | None, ax: Any) -> Any:
    """The drawing of `Estimates.plot`."""
    if kind not in ("interval", "line"):
        raise ModelError(f'kind must be "interval" or "line", not {kind!r}')
    for name in (x, trace):
        if name is not None and name not in estimates.labels:
            raise DataError(f"there is no {name!r} to draw: the estimates have {', '.join(estimates.labels)}")
    _, ax = canvas(ax)
    return _intervals(estimates, ax) if kind == "interval" else _lines(estimates, x, trace, ax)


def _intervals(estimates: Estimates, ax: Any) -> Any:
    frame = estimates.to_frame(tests=False)
    value = frame[_value_column(frame)].to_numpy()
    place = np.arange(len(frame))[::-1]
    lower, upper = (np.clip(frame[c].to_numpy(), -1e300, 1e300) for c in ("lower", "upper"))
    ax.errorbar(value, place, xerr=[value - lower, upper - value], fmt="o", capsize=3)
    text = [", ".join(show(v) for v in row) for row in estimates.labels.itertuples(index=False)]
    ax.set_yticks(place, text)
    if estimates.kind == "contrasts" and np.ndim(estimates.null) == 0:
        is_ratio = _value_column(frame) != "estimate"
        ax.axvline(1.0 if is_ratio and estimates.null == 0.0 else estimates.null, color="0.6", linewidth=1)
    ax.set_xlabel(_axis_label(estimates))
    return ax


def _lines(estimates: Estimates, x: str | None, trace: str | None, ax: Any) -> Any:
    frame = estimates.to_frame(tests=False)
    names = list(estimates.labels)
    x = names[0] if x is None else x
    others = [name for name in names if name != x]
    if trace is None and others:
        trace = others[0]
    levels = list(dict.fromkeys(frame[x]))
    numeric = all(isinstance(v, (int, float)) for v in levels)
    groups = frame.groupby([n for n in names if n != x], sort=False, observed=True) if others else [((), frame)]
    for key, part in groups:
        at = part[x].to_numpy(dtype=float) if numeric else np.array([levels.index(v) for v in part[x]])
        value = part[_value_column(frame)].to_numpy()
        label = ", ".join(show(v) for v in (key if isinstance(key, tuple) else (key,)))
        limits = [value - part["lower"].to_numpy(), part["upper"].to_numpy() - value]
        ax.errorbar(at, value, yerr=limits, fmt="o-", capsize=3, label=label or None)
    if not numeric:
        ax.set_xticks(range(len(levels)), [show(v) for v in levels])
    if others:
        ax.legend(title=", ".join([trace, *[n for n in others if n != trace]]) if trace else None)
    ax.set_xlabel(x)
    ax.set_ylabel(_axis_label(estimates))
    return ax


def _value_column(frame: Any) -> str:
    return next(c for c in ("estimate", "ratio", "odds_ratio") if c in frame)


def _axis_label(estimates: Estimates) -> str:
    return {"means": "marginal mean", "slopes": "marginal slope", "contrasts": "contrast"}[estimates.kind]
