"""Tables that print as a summary does: every column, p-values as R shows them, and the notes beneath."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from html import escape
from typing import Any

import pandas as pd

from fastlmm_core.fitting.text import format_pvalue

__all__ = ["Table", "table"]

PVALUES = frozenset({"p", "p_value", "p_mixture", "p_bootstrap", "p_exact"})
"""Columns that hold p-values."""

WIDTH = 120
"""A note is folded at so many characters."""


class Table(pd.DataFrame):  # type: ignore[misc]  # pandas has no types of its own
    """A DataFrame whose printed form leaves out no column and has its notes beneath.

    What is made of it (a selection, a rounded copy) is an ordinary DataFrame; the notes stay in ``.attrs["notes"]``.
    """

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table should know."""
        return tuple(self.attrs.get("notes", ()))

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        limit = pd.get_option("display.max_rows")
        text = self.to_string(
            max_rows=limit, min_rows=pd.get_option("display.min_rows"), formatters=self._formatters(), na_rep="NaN"
        )
        return "\n".join([text, *self.notes])

    def _repr_html_(self) -> str:
        limit = pd.get_option("display.max_rows")
        text = self.to_html(max_rows=limit, formatters=self._formatters(), na_rep="NaN")
        return "\n".join([text, *(f"<p>{escape(note)}</p>" for note in self.notes)])

    def _formatters(self) -> dict[Any, Callable[[Any], str]]:
        return {name: format_pvalue for name in self.columns if name in PVALUES}


@lru_cache(maxsize=64)
def _labels(names: tuple[str, ...]) -> pd.Index:
    return pd.Index(names)


def labels_of(names: tuple[str, ...]) -> pd.Index:
    """Texts as an Index, made once: that takes longer than what is labelled."""
    return _labels(names).view()  # whoever gives it a name gives one to this view


def table(columns: Any, index: Any = None, notes: Iterable[str] = (), names: tuple[str, ...] | None = None) -> Table:
    """A table with its notes, of columns by name; or of an array (k, c) with the names of its columns and k labels."""
    if names is None:
        frame = Table(columns, index=index)
    else:
        frame = Table(columns, index=labels_of(tuple(index)), columns=labels_of(names), copy=False)
    frame.attrs["notes"] = list(notes)
    return frame
