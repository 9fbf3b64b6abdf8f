"""Names of columns of which means are asked for, and R's formula text for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastlmm_core.errors import DataError, ModelError, near_names
from fastlmm_core.formula.names import names_in
from fastlmm_core.formula.quoting import unquote_name

if TYPE_CHECKING:
    from fastlmm_core.formula import Design

__all__ = ["check_known", "read_specs"]


def check_known(name: str, design: Design) -> None:
    """DataError where a name is no column of the fixed part, saying what it is instead."""
    info = design.grid_info
    if name in info.columns:
        return
    groups = {part for term in design.formula.random for part in term.group}
    if name in groups:
        raise DataError(
            f"{name} is a grouping factor, and its levels are not fixed effects: coef() or predict() has their values"
        )
    if name == unquote_name(design.formula.response) or name in names_in(design.formula.response):
        raise DataError(f"{name} is the response")
    near = near_names(name, info.columns)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"they are {', '.join(info.columns) or 'none'}"
    raise DataError(f"there is no {name!r} among the columns of the fixed part: {hint}")


_PARTS = re.compile(r"`[^`]*`|[^+*:`]+")


def read_specs(
    specs: str | Sequence[str], by: str | Sequence[str] | None, design: Design
) -> tuple[list[str], list[str], str | None]:
    """Names of the means' factors, of the groups', and the contrasts before "~" in R's formula text, if any."""
    method = None
    inner: list[str] = [by] if isinstance(by, str) else list(by or [])
    if isinstance(specs, str) and "~" in specs:
        left, right = specs.split("~", 1)
        method = left.strip() or None
        wanted, _, given = right.partition("|")
        names, inner = _names(wanted), [*_names(given), *inner]
    else:
        if not isinstance(specs, Iterable):
            raise ModelError(f"means are asked for by names of columns, not by {specs!r}")
        names = [specs] if isinstance(specs, str) else [str(name) for name in specs]
    names = [name for name in names if name not in ("1", "") and name not in inner]
    for name in dict.fromkeys([*names, *inner]):
        check_known(name, design)
    for name in names:
        if design.grid_info.columns[name].n_distinct == 1:
            raise DataError(f"{name} has only one value in the rows of the fit: there is nothing to compare")
    return list(dict.fromkeys(names)), list(dict.fromkeys(inner)), method


def _names(text: str) -> list[str]:
    parts = [part.strip() for part in _PARTS.findall(text)]
    return [unquote_name(part) or part for part in parts if part]
