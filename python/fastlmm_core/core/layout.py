"""The symbolic phase: order of the tail, engine, index structures. Made once, for every theta and every weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator
from fastlmm_core._native.criterion.values import Values
from fastlmm_core._native.rows.refill import RowPlaces
from fastlmm_core._native.symbolic.index import leading_values, tail_values
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail, Tail
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.engines import DENSE_BELOW, ENGINES, Cost, EngineReport, TailProblem, choose
from fastlmm_core.core.incidence import (
    FEW,
    Floats,
    Incidence,
    LeadingRows,
    Longs,
    Offsets,
    Products,
    TailRows,
    Weighted,
    natural_offsets,
    pair_lists,
    structures,
    tail_groups,
)
from fastlmm_core.core.machine import NOTICED
from fastlmm_core.core.products import CrossProducts, DesignSums, Responses
from fastlmm_core.core.terms import Group
from fastlmm_core.core.theta import ThetaMap
from fastlmm_core.errors import ModelError
from fastlmm_core.lazy import cached_property
from fastlmm_core.records import quick

__all__ = ["Layout", "engine_report", "kept_plan", "plan"]

SHORT = 1 << 16
"""Tail columns that 16-bit numbers tell apart."""

SMALL, FEW_COLUMNS = 1024, 64
"""Random effects, or cells, and columns of X below which plans are kept: a pattern is sooner read than planned."""

PARALLEL_ABOVE = 5e6
"""Flops of an evaluation below which waking a second thread costs more than it saves."""


@quick
@dataclass(frozen=True)
class Layout:
    """Where each number of a model goes, and the engine that will work on them: nothing that depends on y or weights.

    Attributes
    ----------
    incidence : Incidence
        What it was made from.
    engine : {"none", "dense", "sparse", "cholmod"}
        How the tail is factored; "none" where the leading factor is the only one.
    reason : str
        Why it was taken.
    offsets : list of (q,) int64
        For each group of the tail, the column at which each level begins: all groups but the leading one, or all.
    arrays : dict
        Index arrays of the evaluator.
    factor_bytes : int
        Predicted size of the tail's matrices.
    total_bytes : int
        Predicted size of those, the index structures and the evaluator's workspace: what a fit needs beside the data
        and their cross-products.
    threads : int
        Threads an evaluation uses: one where there is too little work to share.
    tail : Tail
    seconds : float
        Predicted time of a factor and an inverse of the tail, as in `Cost`.
    spare : dict or None
        Of a plan that is kept: objectives that nobody has any more, by whether they are REML's; its copies share them.
    """

    incidence: Incidence
    control: Control
    engine: str
    reason: str
    offsets: Offsets
    arrays: dict[str, NDArray[np.generic]]
    factor_bytes: int
    total_bytes: int
    threads: int
    tail: Tail
    seconds: float = 0.0
    spare: dict[bool, list[Any]] | None = field(default=None, repr=False)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Grouping factors, the leading one first."""
        return self.incidence.groups

    @property
    def leads(self) -> bool:
        """Whether the first group is eliminated level by level; else all are in the tail."""
        return len(self.offsets) < len(self.groups)

    @cached_property
    def columns(self) -> list[Longs]:
        """For each group of the tail, the column of each of its effects (q * l,), by level."""
        groups = self.groups[len(self.groups) - len(self.offsets) :]
        return [
            o if g.n_columns == 1 else (o[:, None] + np.arange(g.n_columns)).ravel()
            for o, g in zip(self.offsets, groups, strict=True)
        ]

    def split(self, lead: Floats, tail: Floats) -> tuple[Floats, ...]:
        """Vectors (k, q * l) of the leading group and (k, m) of the tail as (q * l, k), one a group, by level."""
        rest = [tail.T[columns] for columns in self.columns]
        return (lead.T, *rest) if self.leads else tuple(rest)

    def join(self, parts: Sequence[Floats]) -> tuple[Floats, Floats]:
        """The way back: (q * l, k) by group and level to (k, q * l) and (k, m)."""
        lead = np.array(parts[0].T, order="C") if self.leads else np.empty((parts[0].shape[1], 0))
        return lead, self.join_tail(parts)

    def join_tail(self, parts: Sequence[Floats]) -> Floats:
        """`join`, the tail's part alone."""
        tail = np.empty((parts[0].shape[1], self.tail.m))
        for columns, part in zip(self.columns, parts[int(self.leads) :], strict=True):
            tail[:, columns] = part.T
        return tail

    def evaluator(self, reml: bool, *, n: int | None = None, rank: int | None = None) -> Evaluator:
        """The compiled workspace for one criterion, to be loaded with values.

        Parameters
        ----------
        reml : bool
        n, rank : int, optional
            Observations that the criterion counts and columns of X, where they are not the data's.

        Notes
        -----
        Evaluators of one layout share its tail, which knows whose factors it holds; one of them works at a time, and a
        second thread's call raises `InUseError`.
        """
        n = self.incidence.n if n is None else n
        rank = self.incidence.rank if rank is None else rank
        return Evaluator(self.arrays, self.tail, n, rank, reml, self.threads)

    def working_evaluator(self) -> Evaluator:
        """The workspace for log|M| at a fixed scale: of a working model, whose weights carry the scale."""
        return Evaluator(self.arrays, self.tail, self.incidence.n, 0, False, self.threads, True)

    def another(self) -> Layout:
        """The same layout with a tail of its own, dense or none: evaluators of the two can be at work at once."""
        rows: Any = self.arrays["a_ptr"], self.arrays["a_idx"]
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, tail=DenseTail(rows, self.threads) if self.tail.m else EmptyTail())
        return other

    def load(self, evaluator: Evaluator, cross: CrossProducts) -> None:
        """Load an evaluator of this layout with the numbers of cross-products, and their criterion's constant."""
        constant = cross.conditioning.constant(evaluator.nu, evaluator.reml)
        evaluator.load(self.values(cross), constant)

    def load_response(self, evaluator: Evaluator, design: DesignSums, found: Responses) -> None:
        """The same from a design and the only one of some responses."""
        constant = float(design.constant(evaluator.nu, evaluator.reml, found.norms[0]))
        evaluator.load(self._values(design, *design.sums(found)), constant)

    def values(self, cross: CrossProducts) -> Values:
        """Cross-products in this layout's order.

        They may be other ones than the layout was made from, with other weights or another response, so long as the
        same levels occur together.

        Raises
        ------
        ModelError
            They do not.
        """
        for key, (ptr, idx, _) in cross.pairs.items():
            own_ptr, own_idx, _ = self.incidence.pairs[key]
            if not (idx is own_idx or (np.array_equal(ptr, own_ptr) and np.array_equal(idx, own_idx))):
                raise ModelError("other levels occur together than in the data that this model was laid out for")
        return self._values(cross, cross.dense, cross.dtd)

    def _values(self, cross: Weighted, sums: Sequence[Floats], dtd: Floats) -> Values:
        """`values` of levels that occur together as they should, ``sums`` and ``dtd`` of [X y]."""
        lead, m = self.groups[0], self.tail.m
        if m == 0:
            none = np.empty(0)
            empty = np.empty((cross.rank + 1, 0))
            return Values(cross.blocks[0], none, none, sums[0], empty, dtd, cross.n)
        leading, tail, pairs = pair_lists(cross, self.offsets)
        blocks, dense = cross.blocks[0], sums[0]
        if not self.leads:
            blocks, dense = np.zeros((1, 1, 1)), np.zeros((1, cross.rank + 1))
        a: dict[str, Any] = self.arrays
        val = leading_values(lead.n_columns, a["ptr"], a["t_ptr"], a["t_pos"], leading)
        even = self.leads and not cross.weighted and lead.n_columns == 1 and bool((val == 1.0).all())
        rows = tail_values(a["a_ptr"], tail, pairs)
        # the weights' mean is one
        return Values(blocks, val, rows, dense, self.join_tail(sums), dtd, cross.n, even)

    def rows(self, design: DesignProducts) -> RowPlaces:
        """Places of a design's rows, to refill the values with other weights."""
        levels = [group.n_levels for group in self.groups]
        return RowPlaces(design.codes, design.columns, levels, list(self.offsets), self.arrays, self.threads)

    def __reduce__(self) -> tuple[Callable[..., Layout], tuple[Incidence, Control]]:
        return plan, (self.incidence, self.control)  # made anew: a tail is a workspace

    def lead_rows(self, dense: Sequence[Floats]) -> Floats:
        """Rows (q l, ...) of the leading group, of a list of all; none where no group leads."""
        return dense[0] if self.leads else dense[0][:0]

    def tail_columns(self, dense: Sequence[Floats]) -> Floats:
        """Rows (q l, ...) of every group of the tail, of a list of all, in the tail's order (m, ...)."""
        out = np.empty((self.tail.m, *dense[0].shape[1:]))
        for columns, rows in zip(self.columns, dense[int(self.leads) :], strict=True):
            out[columns] = rows
        return out


def elimination_flops(cross: Products, ptr: NDArray[np.generic], m: int) -> float:
    """Flops of one evaluation: pairs of columns that meet in a leading level, a dense tail, the dense columns."""
    widths = np.diff(ptr).astype(np.float64)
    lead, d = cross.groups[0], cross.rank + 1
    return float(lead.n_columns * (widths @ widths) + lead.size * d * (d + lead.n_columns) + m**3 / 3)


def worth_sharing(cross: Products, leading: LeadingRows, m: int) -> bool:
    """Whether an evaluation takes long enough for threads; levels are looked at only where as many as m could do it."""
    lead, d = cross.groups[0], cross.rank + 1
    most = lead.n_columns * len(leading[1]) * m + lead.size * d * (d + lead.n_columns) + m**3 / 3
    return most > PARALLEL_ABOVE and elimination_flops(cross, leading[0], m) > PARALLEL_ABOVE


def workspace_bytes(cross: Products, leading: LeadingRows, rows: TailRows) -> int:
    """Memory of the index structures and of the evaluator's workspace, the tail's matrices left out."""
    lead, d, parameters = cross.groups[0], cross.rank + 1, cross.theta_map.index
    q, l, m, n_theta = len(leading[0]) - 1, lead.n_columns, len(rows[0]) - 1, len(parameters)
    own = parameters[:, 0].tolist().count(0)
    structure = sum(a.nbytes for a in (*leading, *rows)) + 8 * (2 * l * len(leading[1]) + len(rows[1]))  # B, U, A_tt
    structure += 2 * len(leading[1]) if m <= SHORT else 0  # the columns once more, as 16-bit numbers
    levels = 8 * q * (l * l + 1 + l * (2 * d + 2 + own))
    columns = 8 * m * (4 * d + 2 + 2 * n_theta - own + l * l + 2 * (d - 1))
    return int(structure + levels + columns)


def plan(cross: Products, control: Control | None = None) -> Layout:
    """Order the tail, choose its engine and lay out every index structure.

    Parameters
    ----------
    cross : CrossProducts or DesignProducts
        Only which levels occur together matters, no value does.
    control : Control, optional

    Returns
    -------
    Layout

    Raises
    ------
    MemoryLimitError
        The predicted factor exceeds the memory at hand; the message has both figures.
    """
    control = checked_control(control)
    kept = kept_plan(cross, control)
    return planned(cross, control) if kept is None else kept.another()


def kept_plan(cross: Products, control: Control) -> Layout | None:
    """The plan that models of this pattern copy; None where they are too large for one to be kept."""
    if not is_small(cross, control):
        return None
    cells = tuple([(key, ptr.tobytes(), idx.tobytes(), val.shape[1:]) for key, (ptr, idx, val) in cross.pairs.items()])
    return small_plan(cross.n, cross.rank, cross.groups, cross.theta_map.index.tobytes(), cells, control)


def is_small(cross: Products, control: Control) -> bool:
    """Whether a plan is kept: the model is small, and no look at the tail decides its engine."""
    sizes = [group.size for group in cross.groups]
    if control.engine == "cholmod" or sum(sizes) >= SMALL or cross.rank >= FEW_COLUMNS:
        return False
    few = sum(sizes[1:]) <= DENSE_BELOW and control.engine in ("auto", "dense")
    return len(sizes) == 1 or (few and sum([len(idx) for _, idx, _ in cross.pairs.values()]) < SMALL)


@lru_cache(maxsize=32)
def small_plan(
    n: int,
    rank: int,
    groups: tuple[Group, ...],
    places: bytes,
    cells: tuple[tuple[tuple[int, int], bytes, bytes, tuple[int, int]], ...],
    control: Control,
) -> Layout:
    """`planned` of a pattern: theta's index, and of each pair of groups its cells, are given as bytes."""
    pairs = {
        key: (np.frombuffer(ptr, np.int64).copy(), np.frombuffer(idx, np.int32).copy(), np.empty((0, *widths)))
        for key, ptr, idx, widths in cells
    }
    blocks = tuple(np.empty((0, group.n_columns, group.n_columns)) for group in groups)
    theta_map = ThetaMap(np.frombuffer(places, np.int64).reshape(-1, 3), np.empty((0, 0)))
    found = replace(planned(Incidence(n, rank, groups, blocks, pairs, theta_map), control), spare={True: [], False: []})
    _ = found.columns  # made here for all of its copies
    return found


def planned(cross: Products, control: Control) -> Layout:
    """`plan`, made for these products."""
    problem = tail_problem(cross, control)
    choice = choose(problem, control.engine)
    return Layout(
        Incidence.of(cross),
        control,
        choice.name,
        choice.reason,
        problem.offsets,
        evaluator_arrays(cross, problem.offsets, problem.leading, problem.rows),
        choice.bytes,
        choice.bytes + problem.work,
        problem.threads,
        choice.tail,
        choice.seconds,
    )


def tail_problem(cross: Products, control: Control) -> TailProblem:
    """What an engine has to factor, in the natural order; all random effects where nothing is eliminated beforehand."""
    leads = control.engine != "cholmod"
    m = sum(group.size for group in tail_groups(cross, leads))
    if m > np.iinfo(np.int32).max:
        raise ModelError(f"{m} random effects beside the leading factor exceed the index range")
    available = memory(cross, m, control) if m else 0  # before the structures, which `work` counts
    offsets = natural_offsets(cross, leads)
    leading, rows = structures(cross, offsets)
    threads = control.n_threads if worth_sharing(cross, leading, m) else 1
    return TailProblem(cross, offsets, leading, rows, workspace_bytes(cross, leading, rows), available, threads)


def memory(cross: Products, m: int, control: Control) -> int:
    """Bytes that may be used; the machine is not asked where no engine needs more than it would be asked for."""
    cells = sum(len(idx) * val[0].size if len(val) else len(idx) for _, idx, val in cross.pairs.values())
    most = 64 * (cells + cross.groups[0].size * (cross.rank + m // 1024 + 8)) + 16 * (m + 64) * (m + 64)
    return NOTICED if control.memory_limit is None and most < NOTICED // 4 else control.n_bytes


def engine_report(layout: Layout) -> EngineReport:
    """Which engine a layout has, why, and what each would cost."""
    costs = {}
    for name, engine in ENGINES.items():
        problem = tail_problem(layout.incidence, replace(layout.control, engine=name))
        costs[name] = engine.cost(problem) if problem.m else Cost(0.0, 0)
    return EngineReport(layout.engine, layout.reason, layout.tail.m, costs)


def evaluator_arrays(
    cross: Products, offsets: Offsets, leading: LeadingRows, rows: TailRows
) -> dict[str, NDArray[np.generic]]:
    """Index arrays of the evaluator, tail quantities in the tail's order; read, never written to."""
    ptr, idx, t_ptr, t_lead, t_pos = leading
    groups, m = cross.groups, len(rows[0]) - 1
    made = shape_arrays if sum([g.n_levels for g in groups]) < FEW else shape_arrays.__wrapped__
    order = np.concatenate(offsets).tobytes() if offsets else b""
    return {
        "ptr": ptr,
        "idx": idx,
        "short_idx": idx.astype(np.uint16) if m <= SHORT else np.empty(0, np.uint16),
        "t_ptr": t_ptr,
        "t_lead": t_lead,
        "t_pos": t_pos,
        "a_ptr": rows[0],
        "a_idx": rows[1],
        **made(groups, len(offsets) < len(groups), order, cross.theta_map.index.tobytes()),
    }


@lru_cache(maxsize=64)
def shape_arrays(groups: tuple[Group, ...], leads: bool, order: bytes, places: bytes) -> dict[str, NDArray[np.generic]]:
    """Those of the evaluator's arrays that depend on no data; the tail's offsets and theta's index are given as bytes.

    The kernels' first group leads: one of no levels where none does.
    """
    index = np.frombuffer(places, np.int64).reshape(-1, 3)
    tail = groups[int(leads) :]
    columns, levels = [g.n_columns for g in groups], [g.n_levels for g in groups]
    if not leads:
        columns, levels = [1, *columns], [0, *levels]
    sizes = [0, *accumulate(l * l for l in columns)]
    group_l, group_lam = np.array(columns, np.int64), np.array(sizes, np.int64)
    block_group = np.empty(0, np.int64)
    if tail:
        owner = np.repeat(np.arange(1, len(tail) + 1), [g.n_levels for g in tail])
        block_group = owner[np.argsort(np.frombuffer(order, np.int64), kind="stable")].astype(np.int64)
    widths, of_theta = group_l[block_group], index.T.copy()
    # one spare entry at the end of each: an empty tail still has an address
    return {
        "block_ptr": _after(np.cumsum(widths)),
        "block_group": _spared(block_group),
        "block_lam": _spared(group_lam[block_group]),
        "column_block": _spared(np.repeat(np.arange(len(widths)), widths)),
        "group_l": group_l,
        "group_lam": group_lam,
        "group_levels": np.array(levels, np.int64),
        "theta_group": of_theta[0] + (not leads),
        "theta_row": of_theta[1],
        "theta_col": of_theta[2],
    }


def _spared(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """With a zero at the end."""
    out = np.zeros(len(values) + 1, np.int64)
    out[:-1] = values
    return out


def _after(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """With a zero before."""
    out = np.zeros(len(values) + 1, np.int64)
    out[1:] = values
    return out
