"""Which levels occur together, and the index structures of one order of the tail."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.symbolic.index import leading_rows, tail_rows
from fastlmm_core.core.terms import Group
from fastlmm_core.core.theta import ThetaMap
from fastlmm_core.records import quick

__all__ = [
    "FEW",
    "Incidence",
    "Products",
    "Weighted",
    "alone",
    "natural_offsets",
    "pair_lists",
    "structures",
    "tail_groups",
]

FEW = 4096
"""Levels below which the structures of a single factor are kept."""

Longs = NDArray[np.int64]
Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Offsets = list[Longs]
LeadingRows = tuple[Longs, Ints, Longs, Ints, Longs]
TailRows = tuple[Longs, Ints]
Cells = tuple[Longs, Ints, Floats]
LeadingPair = tuple[Longs, Ints, Floats, Longs]
TailBlock = tuple[Floats, Longs]
TailPair = tuple[Longs, Ints, Floats, Longs, Longs]


class Products(Protocol):
    """What a layout is made from: which levels occur together. `CrossProducts` and `DesignProducts` have it."""

    @property
    def n(self) -> int:
        """Observations."""
        ...

    @property
    def rank(self) -> int:
        """Columns of X kept."""
        ...

    @property
    def groups(self) -> tuple[Group, ...]:
        """Grouping factors, the leading one first."""
        ...

    @property
    def blocks(self) -> tuple[Floats, ...]:
        """Diagonal blocks (q, l, l) of Z'WZ."""
        ...

    @property
    def pairs(self) -> dict[tuple[int, int], Cells]:
        """Cells of two factors, (ptr, idx, val)."""
        ...

    @property
    def theta_map(self) -> ThetaMap:
        """The way between the user's theta and the conditioned one."""
        ...


class Weighted(Products, Protocol):
    """The same, which know whether there are weights."""

    @property
    def weighted(self) -> bool:
        """Weights were given."""
        ...


@quick
@dataclass(frozen=True)
class Incidence:
    """`Products` without their numbers: blocks and cells have their columns, but no rows, and theta no map."""

    n: int
    rank: int
    groups: tuple[Group, ...]
    blocks: tuple[Floats, ...]
    pairs: dict[tuple[int, int], Cells]
    theta_map: ThetaMap

    @classmethod
    def of(cls, products: Products) -> Incidence:
        """That of some products; the arrays that say which levels meet are shared."""
        blocks = tuple(np.empty((0, *block.shape[1:])) for block in products.blocks)
        pairs = {key: (ptr, idx, np.empty((0, *val.shape[1:]))) for key, (ptr, idx, val) in products.pairs.items()}
        theta_map = ThetaMap(products.theta_map.index, np.empty((0, 0)))
        return cls(products.n, products.rank, products.groups, blocks, pairs, theta_map)


def tail_groups(cross: Products, leads: bool) -> tuple[Group, ...]:
    """Groups of the tail: all, or all but the leading one."""
    return cross.groups[int(leads) :]


def natural_offsets(cross: Products, leads: bool = True) -> Offsets:
    """Tail columns in the order of the groups and their levels."""
    groups = tail_groups(cross, leads)
    few = sum([group.n_levels for group in groups]) < FEW
    return list(one_after_another(groups) if few else one_after_another.__wrapped__(groups))


@lru_cache(maxsize=64)
def one_after_another(groups: tuple[Group, ...]) -> tuple[Longs, ...]:
    """Columns at which the levels of some groups begin, these laid side by side; read, never written to."""
    offsets, start = [], 0
    for group in groups:
        offsets.append(start + group.n_columns * np.arange(group.n_levels, dtype=np.int64))
        start += group.size
    return tuple(offsets)


@lru_cache(maxsize=64)
def alone(q: int) -> tuple[LeadingRows, TailRows]:
    """`structures` of a single group of q levels."""
    zero, longs, ints = np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)
    return (np.zeros(q + 1, np.int64), ints, zero, ints, longs), (zero, ints)


def pair_lists(cross: Products, offsets: Offsets) -> tuple[list[LeadingPair], list[TailBlock], list[TailPair]]:
    """Cells of the leading group with each other one, blocks of the tail, and cells within it, with their places.

    All groups are in the tail where there are as many ``offsets`` as groups.
    """
    own = len(cross.groups) - len(offsets)
    leading = [(*cross.pairs[0, h + 1], offset) for h, offset in enumerate(offsets)] if own else []
    tail = list(zip(cross.blocks[own:], offsets, strict=True))
    pairs = [(*cells, offsets[g - own], offsets[h - own]) for (g, h), cells in cross.pairs.items() if g >= own]
    return leading, tail, pairs


def structures(cross: Products, offsets: Offsets) -> tuple[LeadingRows, TailRows]:
    """Patterns of the leading rows and of the tail rows for one order of the tail."""
    leads = len(offsets) < len(cross.groups)
    q = cross.groups[0].n_levels if leads else 0
    if not offsets:
        return alone(q) if q < FEW else alone.__wrapped__(q)
    m = sum(group.size for group in tail_groups(cross, leads))
    leading, tail, pairs = pair_lists(cross, offsets)
    return leading_rows(q, m, leading), tail_rows(m, tail, pairs)
