"""Symmetric patterns as dense boolean lower triangles, and what elimination makes of them by the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["PATTERNS", "compressed", "permuted", "random_pattern", "symbolic_factor"]

Lower = NDArray[np.bool_]


def random_pattern(m: int, density: float, seed: int) -> Lower:
    rng = np.random.default_rng(seed)
    return np.tril(rng.uniform(size=(m, m)) < density) | np.eye(m, dtype=bool)


def chain(m: int) -> Lower:
    return np.tri(m, dtype=bool) & ~np.tri(m, k=-2, dtype=bool)


def arrow(m: int, hubs: int, *, last: bool) -> Lower:
    """A few columns that meet all others: at the end they fill nothing, at the beginning everything."""
    lower = np.eye(m, dtype=bool)
    if last:
        lower[m - hubs :] = np.tri(hubs, m, m - hubs, dtype=bool)
    else:
        lower[:, :hubs] = np.tri(m, hubs, dtype=bool)
    return lower


def dense_blocks(sizes: list[int], shared: int) -> Lower:
    """Full blocks side by side, all of which meet the last few columns."""
    m = sum(sizes) + shared
    lower = np.zeros((m, m), bool)
    start = 0
    for size in sizes:
        lower[start : start + size, start : start + size] = np.tri(size, dtype=bool)
        start += size
    lower[start:] = np.tri(shared, m, start, dtype=bool)
    return lower


def nested(branches: int, depth: int) -> Lower:
    """Each column below its parent and all ancestors, children first."""
    lower = np.ones((1, 1), bool)
    for _ in range(depth):
        size = len(lower)
        wider = np.zeros((branches * size + 1,) * 2, bool)
        for b in range(branches):
            wider[b * size : (b + 1) * size, b * size : (b + 1) * size] = lower
        wider[-1] = True
        lower = wider
    return lower


def grid(side: int) -> Lower:
    cells = np.arange(side * side)
    row, column = np.divmod(cells, side)
    near = np.abs(row[:, None] - row) + np.abs(column[:, None] - column) <= 1
    return np.tril(near)


PATTERNS: dict[str, Lower] = {
    "nothing": np.zeros((0, 0), bool),
    "one column": np.ones((1, 1), bool),
    "singletons": np.eye(9, dtype=bool),
    "chain": chain(40),
    "full": np.tri(70, dtype=bool),
    "arrow, hub last": arrow(50, 1, last=True),
    "arrow, hubs last": arrow(90, 12, last=True),
    "arrow, hub first": arrow(50, 1, last=False),
    "dense blocks": dense_blocks([12, 1, 30, 3, 9, 2, 40], 33),
    "narrow blocks": dense_blocks([2, 3, 4, 1] * 10, 60),
    "blocks of any width": dense_blocks([*range(1, 14)], 17),
    "nested": nested(4, 3),
    "deep": nested(2, 6),
    "grid": grid(14),
    "sparse": random_pattern(150, 0.006, 0),
    "less sparse": random_pattern(150, 0.03, 1),
    "large panels": dense_blocks([300, 120, 60, 9], 350),
    "two components": dense_blocks([40, 30], 0),
}


def compressed(lower: Lower) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted rows."""
    return np.cumsum([0, *lower.sum(axis=1)], dtype=np.int64), np.nonzero(lower)[1].astype(np.int64)


def permuted(lower: Lower, perm: NDArray[np.int64]) -> Lower:
    full = lower | lower.T
    return np.tril(full[np.ix_(perm, perm)])


def symbolic_factor(lower: Lower) -> Lower:
    """Pattern of L by the definition: eliminating j joins all rows below it that hold it."""
    fill = lower.copy()
    for j in range(len(fill)):
        below = np.flatnonzero(fill[j + 1 :, j]) + j + 1
        fill[np.ix_(below, below)] |= np.tril(np.ones((len(below),) * 2, bool))
    return fill
