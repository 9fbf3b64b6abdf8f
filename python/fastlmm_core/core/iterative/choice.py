"""Whether a model is one for the iterative engine, and whether the exact ones are within reach; in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from fastlmm_core._native.iterative.row_form import MAX_LEADING
from fastlmm_core._native.rows.crossprod import sort_rows
from fastlmm_core.core.control import Control
from fastlmm_core.core.crossprod import DesignSums, RowsAtHand
from fastlmm_core.core.engines import dense_cost
from fastlmm_core.errors import MemoryLimitError, ModelError

if TYPE_CHECKING:
    from fastlmm_core.core.crossprod import Responses
    from fastlmm_core.core.objective import Objective
    from fastlmm_core.core.workspaces import Workspaces

__all__ = ["factored", "may_iterate"]

REACH = 300.0
"""Predicted seconds of an evaluation on one core above which an exact fit, which takes about five, is out of reach."""

ENTRIES = 2e7
"""Entries of the tail's pattern from which on it is not formed."""

SMALL = 5_000
"""Random effects in the tail up to which nothing is asked: every exact engine has them done in seconds."""

SAMPLE = 32
"""Tail levels whose row of the pattern is counted."""

SAMPLED_ROWS = 20_000_000
"""Rows that may be looked at for that."""


def factored(
    design: DesignSums, found: Responses, workspaces: Workspaces, control: Control
) -> tuple[Objective | None, str]:
    """A workspace of an exact engine, for its caller alone; or none, and why the fit is the iterative engine's.

    Raises
    ------
    MemoryLimitError
        No exact engine fits into memory, and the model is not one for the iterative engine.
    """
    tail = sum(g.size for g in design.groups[1:])
    if control.engine == "iterative" and tail:  # of one factor nothing is left to factor
        if not design.has_rows:
            raise ModelError(
                "the rows have been added up to cells, which the iterative engine does not take: use 'auto'"
            )
        return None, "it was asked for"
    if workspaces.planned or not may_iterate(design, control):
        return workspaces.take(design, found), ""
    reason = beyond_reach(design, control)
    if reason is not None:
        return None, reason
    try:
        model = workspaces.take(design, found)
    except MemoryLimitError as error:
        return None, str(error).split(": ")[0]
    if model.plan.seconds > REACH:
        workspaces.forget()
        return None, f"an evaluation of the {model.plan.engine} engine would take {model.plan.seconds:.2g} s"
    return model, ""


def may_iterate(design: DesignSums, control: Control) -> bool:
    """Whether a fit goes to the iterative engine where no exact one is within reach."""
    return control.engine == "auto" and sum(g.size for g in design.groups[1:]) > SMALL and suits(design)


def suits(design: DesignSums) -> bool:
    """Whether `iterate` takes the model."""
    index = design.theta_map.index
    correlated = ((index[:, 0] > 0) & (index[:, 1] != index[:, 2])).any()
    return bool(
        len(design.groups) > 1
        and design.has_rows
        and design.groups[0].n_columns <= MAX_LEADING
        and not correlated
        and design.unidentified is None
    )


def beyond_reach(design: DesignSums, control: Control) -> str | None:
    """Why no exact engine is within reach, as far as sizes and a few rows show; None where one may be.

    A dense tail is out of reach by its size; a sparse one where so many entries of a sample of its rows are there that
    its pattern is not worth forming. Where the sample leaves hope the exact engines' own plan decides.
    """
    m = sum(g.size for g in design.groups[1:])
    dense = dense_cost(m)
    if dense.bytes <= control.n_bytes and dense.seconds <= REACH:
        return None
    entries = sampled_entries(design)
    if entries <= ENTRIES:
        return None
    return (
        f"a factor of {m} random effects would take {dense.bytes / 2**30:.1f} GiB and {dense.seconds:.2g} s an "
        f"evaluation, and a sample shows {entries:.2g} entries in its pattern before it fills"
    )


def sampled_entries(design: DesignSums) -> float:
    """About how many entries the lower triangle of the tail's pattern has, from a sample of the longest tail group."""
    widest = max(range(1, len(design.groups)), key=lambda g: design.groups[g].size)
    codes = cast(RowsAtHand, design).codes
    lead, tail = codes[0], codes[widest]
    ptr, order = sort_rows(lead, design.groups[0].n_levels)
    of_tail, places = sort_rows(tail, design.groups[widest].n_levels)
    sizes = np.diff(ptr)
    sample = np.random.default_rng(0).permutation(design.groups[widest].n_levels)[:SAMPLE]
    found, seen, looked = 0.0, 0, 0
    for j in sample:
        leads = np.unique(lead[places[of_tail[j] : of_tail[j + 1]]])
        seen += 1
        counts = sizes[leads]
        looked += int(counts.sum())
        starts = np.repeat(ptr[leads] - np.cumsum(counts) + counts, counts)
        rows = order[starts + np.arange(len(starts))]
        for g in range(1, len(design.groups)):
            found += len(np.unique(codes[g][rows])) * design.groups[g].n_columns
        if looked > SAMPLED_ROWS:
            break
    width = design.groups[widest].n_columns
    others = sum(g.size for k, g in enumerate(design.groups) if k not in (0, widest))
    own = found / max(seen, 1) * width * design.groups[widest].n_levels
    return 0.5 * (own + others)
