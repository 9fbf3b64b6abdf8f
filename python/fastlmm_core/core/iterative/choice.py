"""Whether a model is one for the iterative engine, and whether the exact ones are within reach; in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import MAX_LEADING
from fastlmm_core._native.iterative.sorting import reach, tally
from fastlmm_core.core.control import Control
from fastlmm_core.core.engines import dense_cost
from fastlmm_core.core.products import DesignSums
from fastlmm_core.errors import MemoryLimitError, ModelError

if TYPE_CHECKING:
    from fastlmm_core.core.criterion import Objective
    from fastlmm_core.core.products import Responses
    from fastlmm_core.core.workspaces import Workspaces

__all__ = ["factored", "may_iterate"]

REACH = 60.0
"""Predicted seconds of an evaluation on one core above which an exact fit, which takes about five, is out of reach."""

ENTRIES = 5e6
"""Entries of the tail's pattern from which on it is not formed and put in order, which would take longer than a fit."""

SMALL = 5_000
"""Random effects in the tail up to which nothing is asked: every exact engine has them done in seconds."""

SAMPLE = 32
"""Tail levels whose row of the pattern is counted, a bit each."""


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
    return bool(
        len(design.groups) > 1
        and design.has_rows
        and max(g.n_columns for g in design.groups) <= MAX_LEADING
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
    """About how many entries the lower triangle of the tail's pattern has, from a sample of the longest tail group.

    Levels are drawn by their rows, since where these have a heavy tail few levels have most of the entries, and count
    for less the more likely they are. Each is a bit, which goes through the rows to the leading levels that it occurs
    with, and from there to all tail levels: three passes over the rows, and memory for levels only.
    """
    widest = max(range(1, len(design.groups)), key=lambda g: design.groups[g].size)
    levels, width = design.groups[widest].n_levels, design.groups[widest].n_columns
    at_hand, rows = design.at_hand, np.zeros(levels, np.int64)
    for codes, _, _ in at_hand.pieces():
        tally(codes[widest], rows)
    sample, times = drawn(rows)
    bits = np.zeros(levels, np.uint32)
    bits[sample] = np.uint32(1) << np.arange(len(sample), dtype=np.uint32)
    of_lead, *of_tail = (np.zeros(group.n_levels, np.uint32) for group in design.groups)
    for codes, _, _ in at_hand.pieces():
        reach(codes[widest], bits, codes[0], of_lead)
    for codes, _, _ in at_hand.pieces():
        for g, met in enumerate(of_tail, 1):
            reach(codes[0], of_lead, codes[g], met)
    found = np.zeros(len(sample))
    for group, met in zip(design.groups[1:], of_tail, strict=True):
        found += [group.n_columns * np.count_nonzero(met & bit) for bit in bits[sample]]
    others = sum(g.size for k, g in enumerate(design.groups) if k not in (0, widest))
    return 0.5 * (width * float((found * times).sum()) + others)


def drawn(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Up to `SAMPLE` levels, and how many levels each stands for; all of them where they are no more.

    A systematic sample along the levels' rows: a level of at least a step's rows is certain, and stands for one.
    """
    total, levels = float(rows.sum()), len(rows)
    if levels <= SAMPLE:
        return np.arange(levels), np.ones(levels)
    step = total / SAMPLE
    found = np.searchsorted(np.cumsum(rows), (np.arange(SAMPLE) + 0.5) * step)
    sample = np.unique(np.minimum(found, levels - 1))
    return sample, np.maximum(step / rows[sample], 1.0)
