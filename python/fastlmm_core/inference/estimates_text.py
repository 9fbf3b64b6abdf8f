"""`Estimates` as text and as HTML: a table a group, four significant digits, the notes below."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.fitting.text import html_table, text_table
from fastlmm_core.inference.estimate_contrasts import show

if TYPE_CHECKING:
    from fastlmm_core.inference.estimates import Estimates

__all__ = ["as_html", "as_text"]

FIGURES = ("estimate", "ratio", "odds_ratio", "std_error", "df", "lower", "upper", "t", "p")


def as_text(estimates: Estimates) -> str:
    """The printed page."""
    parts = []
    for title, header, rows, left in _tables(estimates):
        parts.append((f"{title}\n" if title else "") + text_table(header, rows, left=left))
    return "\n\n".join([*parts, "\n".join(_notes(estimates))])


def as_html(estimates: Estimates) -> str:
    """The same for a notebook."""
    parts = [html_table(header, rows, left, title) for title, header, rows, left in _tables(estimates)]
    parts += [f"<p>{escape(note)}</p>" for note in _notes(estimates)]
    return "<div>" + "\n".join(parts) + "</div>"


def _notes(estimates: Estimates) -> list[str]:
    return [f"confidence level: {estimates.level:g}", *estimates.all_notes()]


def _tables(estimates: Estimates) -> list[tuple[str, list[str], list[list[str]], int]]:
    frame = estimates.to_frame(tests=estimates.kind == "contrasts" or estimates.side != "two-sided")
    keys = [c for c in frame if c not in FIGURES and c not in estimates.by]
    figures = [c for c in frame if c in FIGURES]
    cells = {name: _cells(frame, name, estimates.estimable) for name in figures}
    out = []
    for group in estimates.groups():
        title = ", ".join(f"{name} = {show(frame[name].iloc[group[0]])}" for name in estimates.by)
        rows = [[*(show(frame[key].iloc[i]) for key in keys), *(cells[name][i] for name in figures)] for i in group]
        out.append((f"{title}:" if title else "", [*keys, *figures], rows, len(keys)))
    return out


def _cells(frame: pd.DataFrame, name: str, estimable: np.ndarray) -> list[str]:
    values = frame[name].to_numpy(dtype=np.float64)
    if name == "p":
        text = ["<.0001" if v < 1e-4 else f"{v:.4f}" for v in values]
    elif name in ("df", "t"):
        decimals = 3 if name == "t" else _df_decimals(values)
        text = ["Inf" if np.isinf(v) else f"{v:.{decimals}f}" for v in values]
    else:
        together = [c for c in ("estimate", "ratio", "odds_ratio", "std_error", "lower", "upper") if c in frame]
        text = _rounded(
            values, frame[together].to_numpy(dtype=np.float64), frame["std_error"].to_numpy(dtype=np.float64)
        )
    return [
        t if ok and not np.isnan(v) else ("nonEst" if not ok and name in ("estimate", "ratio", "odds_ratio") else "NA")
        for t, ok, v in zip(text, estimable, values, strict=True)
    ]


def _df_decimals(values: np.ndarray) -> int:
    finite = values[np.isfinite(values)]
    return 0 if np.allclose(finite, np.round(finite), atol=5e-3) else (1 if finite.min(initial=1e3) >= 10 else 2)


def _rounded(values: np.ndarray, every: np.ndarray, se: np.ndarray) -> list[str]:
    """Decimals at which the smallest standard error shows three significant digits."""
    size = np.abs(se[np.isfinite(se) & (se > 0)])
    decimals = int(np.clip(2 - np.floor(np.log10(size.min())), 0, 10)) if size.size else 3
    fixed = [f"{v:.{decimals}f}" if np.isfinite(v) else ("Inf" if v > 0 else "-Inf") for v in values]
    wide = max((len(f"{v:.{decimals}f}") for v in every[np.isfinite(every)]), default=0) > 14
    return [f"{v:.4g}" for v in values] if wide else fixed
