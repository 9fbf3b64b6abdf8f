"""Index structures of the leading elimination against dense matrices and boolean patterns."""

import numpy as np
import pytest

from fastlmm_core._native.symbolic.index import (
    leading_rows,
    leading_values,
    permuted_pattern,
    schur_fill,
    schur_pattern,
    tail_rows,
    tail_values,
)
from kernel_oracle import expand, incidence, lower_rows, problem, shuffled_offsets

CASES = [
    pytest.param((14, 5), (1, 1), id="scalar"),
    pytest.param((9, 6), (2, 1), id="slopes lead"),
    pytest.param((20, 5), (1, 3), id="slopes in the tail"),
    pytest.param((12, 7, 4), (3, 2, 1), id="three factors"),
    pytest.param((20, 6, 5, 3), (2, 3, 1, 2), id="four factors"),
]


class Structures:
    """The index structures of a problem in a shuffled order of the tail, and the dense matrices they stand for."""

    def __init__(self, levels, widths, seed=0, n=40):
        given = problem(levels, widths, n=n, seed=seed)
        self.products = given.model().products
        groups = self.products.groups
        self.q, self.l = groups[0].n_levels, groups[0].n_columns
        self.m = sum(g.size for g in groups[1:])
        cross = self.products.cross(given.y)
        offsets = shuffled_offsets([g.n_levels for g in groups[1:]], [g.n_columns for g in groups[1:]], seed)
        leading = [(*cross.pairs[0, h + 1], offset) for h, offset in enumerate(offsets)]
        self.leading = leading_rows(self.q, self.m, leading)
        ptr, _, t_ptr, _, t_pos = self.leading
        self.leading_values = leading_values(self.l, ptr, t_ptr, t_pos, leading)
        tail = (
            list(zip(cross.blocks[1:], offsets, strict=True)),
            [(*cells, offsets[g - 1], offsets[h - 1]) for (g, h), cells in cross.pairs.items() if g > 0],
        )
        self.tail = tail_rows(self.m, *tail)
        self.tail_values = tail_values(self.tail[0], *tail)
        z = [
            incidence(codes, g.n_levels, columns)
            for codes, g, columns in zip(self.products.codes, groups, self.products.columns, strict=True)
        ]
        self.Z_lead, self.Z_tail = z[0], np.zeros((n, self.m))
        occurs = np.zeros((n, self.m), bool)
        for g, codes, columns, offset in zip(groups[1:], self.products.codes[1:], z[1:], offsets, strict=True):
            self.Z_tail[:, expand(offset, g.n_columns)] = columns
            occurs[np.arange(n)[:, None], offset[codes][:, None] + np.arange(g.n_columns)] = True
        self.levels = np.array([occurs[self.products.codes[0] == i].any(axis=0) for i in range(self.q)])
        met = (occurs.T.astype(int) @ occurs) > 0  # columns that share a row
        for g, offset in zip(groups[1:], offsets, strict=True):  # all of a level's block, rows or not
            for start in offset:
                met[start : start + g.n_columns, start : start + g.n_columns] = True
        self.pattern = np.tril(met | ((self.levels.T.astype(int) @ self.levels) > 0))

    def schur_arguments(self):
        ptr, idx, t_ptr, t_lead, t_pos = self.leading
        return self.tail[0], self.tail[1], ptr, idx, t_ptr, t_lead, t_pos


@pytest.mark.parametrize(("levels", "widths"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_leading_rows_hold_the_cross_product(levels, widths, seed):
    s = Structures(levels, widths, seed)
    ptr, idx, *_ = s.leading
    val = s.leading_values
    dense = np.zeros((s.q, s.l, s.m))
    for i in range(s.q):
        columns = idx[ptr[i] : ptr[i + 1]]
        assert (np.diff(columns) > 0).all()
        np.testing.assert_array_equal(columns, np.flatnonzero(s.levels[i]))
        dense[i][:, columns] = val[s.l * ptr[i] : s.l * ptr[i + 1]].reshape(s.l, -1)  # l strips of m_i
    np.testing.assert_allclose(dense.reshape(-1, s.m), s.Z_lead.T @ s.Z_tail, atol=1e-12)


@pytest.mark.parametrize(("levels", "widths"), CASES)
def test_transpose_of_the_leading_rows(levels, widths):
    s = Structures(levels, widths)
    ptr, idx, t_ptr, t_lead, t_pos = s.leading
    assert len(t_ptr) == s.m + 1
    assert t_ptr[-1] == len(idx)
    for j in range(s.m):
        places = slice(t_ptr[j], t_ptr[j + 1])
        np.testing.assert_array_equal(np.sort(t_lead[places]), np.flatnonzero(s.levels[:, j]))
        assert (idx[t_pos[places]] == j).all()
        assert ((ptr[t_lead[places]] <= t_pos[places]) & (t_pos[places] < ptr[t_lead[places] + 1])).all()


@pytest.mark.parametrize(("levels", "widths"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_tail_rows_hold_the_lower_triangle(levels, widths, seed):
    s = Structures(levels, widths, seed)
    ptr, idx = s.tail
    for j in range(s.m):
        columns = idx[ptr[j] : ptr[j + 1]]
        assert (columns <= j).all()
        assert len(set(columns)) == len(columns)
    np.testing.assert_allclose(lower_rows(*s.tail, s.tail_values, s.m), np.tril(s.Z_tail.T @ s.Z_tail), atol=1e-12)


@pytest.mark.parametrize(("levels", "widths"), CASES)
@pytest.mark.parametrize("n", [25, 40])
def test_schur_pattern_is_the_boolean_product(levels, widths, n):
    s = Structures(levels, widths, n=n)
    c_ptr, c_idx = schur_pattern(*s.schur_arguments(), s.m**2)
    assert c_ptr.dtype == c_idx.dtype == np.int64
    for j in range(s.m):
        np.testing.assert_array_equal(np.sort(c_idx[c_ptr[j] : c_ptr[j + 1]]), np.flatnonzero(s.pattern[j]))


def test_schur_pattern_stops_at_its_limit():
    s = Structures((12, 7, 4), (3, 2, 1), n=25)
    size = int(s.pattern.sum())
    assert schur_pattern(*s.schur_arguments(), size - 1) is None
    assert len(schur_pattern(*s.schur_arguments(), size)[1]) == size


@pytest.mark.parametrize(("levels", "widths"), CASES)
def test_schur_fill_counts_the_sampled_rows(levels, widths):
    s = Structures(levels, widths, n=25)
    for sample in (np.arange(s.m), np.array([s.m - 1]), np.arange(0, s.m, 3)):
        room = (sample + 1).sum()
        assert schur_fill(*s.schur_arguments(), sample) == pytest.approx(s.pattern[sample].sum() / room, abs=1e-15)


def test_no_tail():
    ptr, idx, t_ptr, t_lead, t_pos = leading_rows(3, 0, [])
    np.testing.assert_array_equal(ptr, np.zeros(4))
    assert len(idx) == len(leading_values(2, ptr, t_ptr, t_pos, [])) == len(t_lead) == len(t_pos) == 0
    np.testing.assert_array_equal(t_ptr, [0])


@pytest.mark.parametrize(("m", "density"), [(0, 0.0), (1, 0.0), (7, 0.3), (40, 0.1), (20, 1.0)])
def test_permuted_pattern_moves_and_sorts(m, density):
    rng = np.random.default_rng(m)
    full = rng.uniform(size=(m, m)) < density
    full = full | full.T | np.eye(m, dtype=bool)
    lists = [rng.permutation(np.flatnonzero(full[j, : j + 1])) for j in range(m)]
    ptr = np.cumsum([0, *map(len, lists)])
    idx = np.concatenate([*lists, np.empty(0)]).astype(np.int64)
    for position in (np.arange(m), rng.permutation(m)):
        new_ptr, new_idx = permuted_pattern(ptr, idx, position)
        moved = np.zeros_like(full)
        moved[np.ix_(position, position)] = full
        for j in range(m):
            np.testing.assert_array_equal(new_idx[new_ptr[j] : new_ptr[j + 1]], np.flatnonzero(moved[j, : j + 1]))
