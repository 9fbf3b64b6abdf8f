"""Engines of the tail: what each would cost, which one is taken and why.

An engine is a `Tail` (how the compiled kernels use it) and an `Engine` here (whether to). A new one implements both and
is listed in `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from fastlmm_core._native.symbolic.index import permuted_pattern, schur_fill, schur_pattern
from fastlmm_core._native.symbolic.ordering import elimination_tree, fill_ordering
from fastlmm_core._native.symbolic.supernodes import Supernodes, dense_seconds
from fastlmm_core._native.tail.cholmod import CholmodTail
from fastlmm_core._native.tail.sparse import SparseTail
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail, Tail
from fastlmm_core.core.incidence import LeadingRows, Longs, Offsets, Products, TailRows, structures, tail_groups
from fastlmm_core.core.terms import Group
from fastlmm_core.errors import MemoryLimitError, ModelError
from fastlmm_core.lazy import cached_property

__all__ = ["ENGINES", "NO_FACTOR", "Choice", "Cost", "Engine", "EngineReport", "TailProblem", "choose", "dense_cost"]

DENSE_BELOW = 100
"""Tails no larger than this are dense without a look at their pattern, which would cost more than it saves."""

DENSE_FILL = 0.4
"""Schur complements fuller than this are dense without a look at their pattern. Elimination fills them further: at 0.46
(ten million ratings) a sparse factor was predicted to take 0.7 of the time and twice the memory."""

PATTERN_BYTES = 24
"""Bytes an entry of the Schur complement's pattern takes in the sparse engine, its factor left out: an index, a value,
and a place in the factor."""

METIS_SECONDS = 2.5e-7
"""Predicted seconds of a factor and inverse, an entry of the pattern of blocks, from which on METIS is tried. It takes
6e-7 an entry, and where it beats AMD it does so by about a quarter, in each of some ten evaluations."""

SAMPLED_ROWS = 64
"""Rows of the Schur complement whose fill decides whether its whole pattern is worth forming."""

SIMPLICIAL = 3e-10
"""Predicted seconds a flop of CHOLMOD's simplicial factor: a twelfth of LAPACK's speed."""

NO_TAIL = "the leading factor is the only one: nothing is left to factor"
"""Why there is no engine."""

NO_FACTOR = (
    "not available for a fit by the iterative engine, which has no factor of the random effects: fit with "
    "Control(engine='dense') or 'sparse' where memory allows it"
)
"""What is said where a factor would be needed."""

Pattern = tuple[Longs, Longs]


@dataclass(frozen=True)
class Cost:
    """Prediction for one engine.

    Attributes
    ----------
    seconds : float
        Of a factor and an inverse on one core of a Zen 3 server; only ratios matter.
    bytes : int
        Of the engine's matrices and indices.
    """

    seconds: float
    bytes: int


@dataclass
class TailProblem:
    """What an engine has to factor, and what there is to do it with.

    Attributes
    ----------
    products : Products
    offsets, leading, rows
        In the order at hand; the natural one at first.
    work : int
        Bytes of the index structures and of the evaluator's workspace.
    available : int
        Bytes that may be used.
    threads : int
    """

    products: Products
    offsets: Offsets
    leading: LeadingRows
    rows: TailRows
    work: int
    available: int
    threads: int

    @property
    def m(self) -> int:
        """Columns of the tail."""
        return len(self.rows[0]) - 1

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of the tail."""
        return tail_groups(self.products, len(self.offsets) < len(self.products.groups))

    @cached_property
    def full(self) -> bool:
        """Whether a few rows show a Schur complement too full for a sparse factor to pay."""
        return sampled_fill(self.leading, self.rows) > DENSE_FILL

    @cached_property
    def lower(self) -> Pattern | None:
        """Pattern of the Schur complement in the natural order; None where it does not fit into memory."""
        return pattern(self.leading, self.rows, self.available // PATTERN_BYTES)

    @cached_property
    def ordered(self) -> tuple[Offsets, Longs, Supernodes]:
        """The best order for supernodes; see `order_blocks`."""
        assert self.lower is not None
        return order_blocks(self.groups, self.lower)

    def reorder(self, offsets: Offsets, position: Longs) -> Pattern:
        """Take another order of the columns; returns the pattern in it."""
        assert self.lower is not None
        self.offsets = offsets
        del self.leading, self.rows  # before the others are made
        self.leading, self.rows = structures(self.products, offsets)
        return permuted_pattern(*self.lower, position)

    def fits(self, cost: Cost) -> bool:
        """Whether there is memory for it."""
        return cost.bytes + self.work <= self.available

    def refuse(self, cost: Cost, what: str) -> None:
        """Refuse a factor that the machine cannot hold."""
        if not self.fits(cost):
            raise MemoryLimitError(
                f"{what} of {self.m} random effects would take {(cost.bytes + self.work) / 2**30:.1f} GiB, but "
                f"{self.available / 2**30:.1f} GiB can be used: "
                "simplify the random effects, raise Control(memory_limit=...) if the machine has more, or fit "
                "crossed factors without a factor, by Control(engine='iterative')"
            )


class Engine(Protocol):
    """How an engine is chosen and made."""

    name: str

    def cost(self, problem: TailProblem) -> Cost | None:
        """Prediction, or None where the problem is beyond the engine."""
        ...

    def make(self, problem: TailProblem) -> Tail:
        """The tail; brings the problem into its order."""
        ...


@lru_cache(maxsize=64)
def dense_cost(m: int) -> Cost:
    """Of a dense tail of m columns: both triangles, and a panel."""
    return Cost(dense_seconds(m), 8 * m * (m + 1 + DenseTail.tile_size(m)))


class Dense:
    """All entries, as one supernode."""

    name = "dense"

    def cost(self, problem: TailProblem) -> Cost:
        """As `Engine.cost`."""
        return dense_cost(problem.m)

    def make(self, problem: TailProblem) -> Tail:
        """As `Engine.make`."""
        return DenseTail(problem.rows, problem.threads)


class Sparse:
    """Supernodes of the Schur complement's pattern."""

    name = "sparse"

    def cost(self, problem: TailProblem) -> Cost | None:
        """As `Engine.cost`."""
        if problem.lower is None:
            return None
        tree = problem.ordered[2]
        return Cost(tree.seconds, SparseTail.bytes(tree, len(problem.lower[1]), problem.threads))

    def make(self, problem: TailProblem) -> Tail:
        """As `Engine.make`."""
        offsets, position, tree = problem.ordered
        return SparseTail(*_reordered(problem, offsets, position), problem.threads, tree)


class Cholmod:
    """Henderson's whole system without an elimination, by CHOLMOD's simplicial factor."""

    name = "cholmod"

    def cost(self, problem: TailProblem) -> Cost | None:
        """As `Engine.cost`."""
        if problem.lower is None:
            return None
        columns = np.argsort(problem.ordered[1])
        _, counts = elimination_tree(*problem.lower, columns)
        entries, flops = float(counts.sum()), float((counts.astype(np.float64) ** 2).sum())
        size = CholmodTail.bytes(problem.m, len(problem.lower[1]), entries, problem.threads)
        return Cost(3.0 * SIMPLICIAL * flops, size)

    def make(self, problem: TailProblem) -> Tail:
        """As `Engine.make`."""
        offsets, position, _ = problem.ordered
        return CholmodTail(*_reordered(problem, offsets, position), problem.threads)


def _reordered(problem: TailProblem, offsets: Offsets, position: Longs) -> tuple[TailRows, Longs, Longs]:
    lower = problem.reorder(offsets, position)
    return problem.rows, *lower


DENSE, SPARSE, CHOLMOD = Dense(), Sparse(), Cholmod()
ENGINES: dict[str, Engine] = {engine.name: engine for engine in (DENSE, SPARSE, CHOLMOD)}


@dataclass(frozen=True)
class Choice:
    """An engine, made, and why this one."""

    name: str
    tail: Tail
    bytes: int
    reason: str
    seconds: float


def choose(problem: TailProblem, wanted: str) -> Choice:
    """The engine that is asked for, or for "auto" the one predicted to be faster; makes it.

    Raises
    ------
    MemoryLimitError
        It does not fit into memory.
    """
    if problem.m == 0:
        return Choice("none", EmptyTail(), 0, NO_TAIL, 0.0)
    if wanted == "iterative":
        raise ModelError(
            "the iterative engine fits linear models of independent residuals, and has no factor to evaluate a "
            "criterion with: use engine='auto', 'dense' or 'sparse' here"
        )
    forced = wanted != "auto"
    dense = DENSE.cost(problem)
    name, cost, reason = "dense", dense, "it was asked for"
    if wanted == "auto" and problem.m <= DENSE_BELOW:
        reason = "they are too few for a look at their pattern to pay"
    elif wanted == "auto" and problem.fits(dense) and problem.full:
        reason = f"a few rows show the matrix to be over {DENSE_FILL} full"
    elif wanted != "dense":
        other = ENGINES["sparse" if wanted == "auto" else wanted]
        found = other.cost(problem)
        if found is None and forced:
            limit = problem.available // PATTERN_BYTES
            raise MemoryLimitError(
                f"the {other.name} engine's pattern of {problem.m} random effects has more than {limit:.3g} entries, "
                f"which is what {problem.available / 2**30:.1f} GiB can hold"
            )
        if found is None:
            reason = "the pattern of a sparse factor does not fit into memory"
        elif forced:
            name, cost = other.name, found
        else:
            name, cost, reason = _faster(problem, dense, found)
    problem.refuse(cost, f"the {name} factor")
    return Choice(name, ENGINES[name].make(problem), cost.bytes, reason, cost.seconds)


def _faster(problem: TailProblem, dense: Cost, sparse: Cost) -> tuple[str, Cost, str]:
    """Dense or sparse by predicted time.

    Memory is worth as much as time: a sparse factor that takes more of it has to be faster by as much; judged on one
    thread, so that their number does not change the engine and with it the last digits.
    """
    if not problem.fits(dense):
        return "sparse", sparse, "a dense factor does not fit into memory"
    if not problem.fits(sparse):
        return "dense", dense, "a sparse factor does not fit into memory"
    assert problem.lower is not None
    memory = SparseTail.bytes(problem.ordered[2], len(problem.lower[1]), 1) / dense.bytes
    if sparse.seconds * max(1.0, memory) < dense.seconds:
        return "sparse", sparse, f"predicted to take {sparse.seconds / dense.seconds:.2f} of the dense engine's time"
    return (
        "dense",
        dense,
        f"a sparse factor is predicted to take {sparse.seconds / dense.seconds:.2f} of its time"
        + (f" and {memory:.1f} of its memory" if memory > 1.0 else ""),
    )


@dataclass(frozen=True)
class EngineReport:
    """Which engine factors the tail of a model, why, and what the others would cost.

    Attributes
    ----------
    engine : str
    reason : str
    effects : int
        Random effects that are left after the leading factor is eliminated, in the engine's tail.
    costs : dict
        Predicted seconds and bytes of each engine, None where it could not be used.
    """

    engine: str
    reason: str
    effects: int
    costs: dict[str, Cost | None]

    def __str__(self) -> str:
        lines = [f"Engine: {self.engine} ({self.effects} random effects in its tail), since {self.reason}."]
        for name, cost in self.costs.items():
            if cost is None:
                lines.append(f"  {name:8s} does not fit into memory")
            else:
                lines.append(f"  {name:8s} {1e3 * cost.seconds:10.3g} ms an evaluation  {cost.bytes / 2**20:10.1f} MiB")
        return "\n".join(lines)


def pattern(leading: LeadingRows, tail: TailRows, limit: int) -> Pattern | None:
    """Lower pattern of the Schur complement with sorted rows, or None where it has more entries than ``limit``."""
    ptr, idx, t_ptr, t_lead, t_pos = leading
    found = schur_pattern(tail[0], tail[1], ptr, idx, t_ptr, t_lead, t_pos, limit)
    return None if found is None else permuted_pattern(*found, np.arange(len(tail[0]) - 1))


def sampled_fill(leading: LeadingRows, tail: TailRows) -> float:
    """Fraction of the Schur complement's lower triangle that is nonzero, from evenly spaced rows."""
    ptr, idx, t_ptr, t_lead, t_pos = leading
    m = len(tail[0]) - 1
    sample = np.unique(np.linspace(0, m - 1, SAMPLED_ROWS).astype(np.int64))
    return float(schur_fill(tail[0], tail[1], ptr, idx, t_ptr, t_lead, t_pos, sample))


def block_pattern(lower: Pattern, widths: Longs) -> Pattern:
    """Pattern of blocks of columns from that of the columns."""
    if widths.max() == 1:
        return lower
    ptr, idx = lower
    last = np.cumsum(widths) - 1  # a block's last row lists all of its diagonal block
    block_of = np.repeat(np.arange(len(widths)), widths)
    from scipy.sparse import csr_array

    rows = csr_array((np.ones(len(idx), np.int8), idx, ptr), shape=(len(block_of),) * 2)[last]
    blocks = csr_array((rows.data, block_of[rows.indices], rows.indptr), shape=(len(widths),) * 2)
    blocks.sum_duplicates()
    return blocks.indptr.astype(np.int64), blocks.indices.astype(np.int64)


def order_blocks(groups: Sequence[Group], lower: Pattern) -> tuple[Offsets, Longs, Supernodes]:
    """The cheaper of AMD's and METIS's orders of the tail's blocks (levels), and what a factor looks like in it.

    Columns of one level share a pattern and stay together.

    Parameters
    ----------
    groups : sequence of Group
        Those of the tail.
    lower : Pattern
        In the natural order.

    Returns
    -------
    offsets
        As `Layout` has them.
    position : (m,) int64
        New place of each column.
    tree : Supernodes
    """
    widths = np.concatenate([np.full(g.n_levels, g.n_columns, np.int64) for g in groups])
    starts = np.cumsum(widths) - widths
    blocks = block_pattern(lower, widths)
    best: tuple[Longs, Supernodes] | None = None
    for method in ("amd", "metis"):
        if best is not None and best[1].seconds < METIS_SECONDS * len(blocks[1]):
            break
        perm = fill_ordering(*blocks, method)
        if perm is None:
            continue
        place = np.cumsum(widths[perm]) - widths[perm]
        columns = np.repeat(starts[perm] - place, widths[perm]) + np.arange(widths.sum())
        tree = Supernodes(*elimination_tree(*lower, columns))
        if best is None or tree.seconds < best[1].seconds:
            best = columns, tree
    assert best is not None
    position = np.empty_like(best[0])
    position[best[0]] = np.arange(len(position))
    return np.split(position[starts], np.cumsum([g.n_levels for g in groups])[:-1]), position, best[1]
