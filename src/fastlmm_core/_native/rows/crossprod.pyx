"""Cross-products in one pass over the rows.

For grouping factors g, h with codes c_g(i), c_h(i), row vectors z_g(i) (length l_g) and weights w_i:

    level_blocks:  A_g[j]      = sum over rows of level j of  w_i z_g(i) z_g(i)'          (q_g, l_g, l_g)
    add_level_blocks, mirror_blocks:  the same in parts, for rows that come in batches
    level_sums:    (Z'WD)[j]   = sum over rows of level j of  w_i z_g(i) d(i)'            (q_g * l_g, d)
    pair_cells:    Z_g'WZ_h    as block compressed rows, one block per (level, level) pair that occurs
    level_ranks:   levels that have rows, dependent columns within them
    nested_cells:  the same where each level of g has rows of one level of h only, with no sort and no random reads

All loops are O(n l^2). Rows of equal (level, level) pairs collapse into one cell, so nothing after this file
depends on n. Codes are int32 and must lie in [0, q): the caller checks.
"""

import numpy as np

from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t

__all__ = [
    "add_level_blocks",
    "level_blocks",
    "level_ranks",
    "level_sums",
    "mirror_blocks",
    "nested_cells",
    "pair_cells",
    "sort_rows",
]


def sort_rows(const int32_t[::1] codes, Py_ssize_t q):
    """Row numbers grouped by level, by a counting sort.

    Parameters
    ----------
    codes : (n,) int32
        Level of each row, in [0, q).
    q : int
        Number of levels.

    Returns
    -------
    ptr : (q + 1,) int64
        Rows of level j are ``rows[ptr[j]:ptr[j + 1]]``, in their original order.
    rows : (n,) int64
    """
    cdef Py_ssize_t n = codes.shape[0], i, j
    ptr_ = np.zeros(q + 1, np.int64)
    rows_ = np.empty(n, np.int64)
    cdef int64_t[::1] ptr = ptr_, rows = rows_
    cdef int64_t start, count
    with nogil:
        for i in range(n):
            ptr[codes[i] + 1] += 1
        start = 0
        for j in range(1, q + 1):  # ptr[j] becomes the start of level j - 1 ...
            count = ptr[j]
            ptr[j] = start
            start += count
        for i in range(n):  # ... and, once its rows are placed, the start of level j
            j = codes[i] + 1
            rows[ptr[j]] = i
            ptr[j] += 1
    return ptr_, rows_


def level_blocks(const int32_t[::1] codes, Py_ssize_t q, const double[:, ::1] z, const double[::1] w):
    """Diagonal blocks of Z'WZ for one grouping factor.

    Parameters
    ----------
    codes : (n,) int32
    q : int
    z : (n, l) float64 or None
        None stands for one column of ones.
    w : (n,) float64 or None
        None stands for unit weights.

    Returns
    -------
    (q, l, l) float64, symmetric blocks
    """
    out = np.zeros((q, 1 if z is None else z.shape[1], 1 if z is None else z.shape[1]))
    add_level_blocks(codes, z, w, out)
    mirror_blocks(out)
    return out


def add_level_blocks(const int32_t[::1] codes, const double[:, ::1] z, const double[::1] w, double[:, :, ::1] out):
    """Add the lower triangles of `level_blocks` of these rows to ``out`` (q, l, l), so that rows can come in batches.

    Parameters
    ----------
    codes, z, w
        As in `level_blocks`.
    out : (q, l, l) float64
        `mirror_blocks` fills the upper triangles in the end.
    """
    cdef Py_ssize_t n = codes.shape[0], l = 1 if z is None else z.shape[1], i, r, c
    cdef double *block
    cdef double wi = 1.0, zr
    if out.shape[1] != l or out.shape[2] != l or (z is not None and z.shape[0] != n) or (w is not None and len(w) != n):
        raise ValueError("rows or columns do not match")
    with nogil:
        for i in range(n):
            if w is not None:
                wi = w[i]
            block = &out[codes[i], 0, 0]
            if z is None:
                block[0] += wi
            else:
                for r in range(l):
                    zr = wi * z[i, r]
                    for c in range(r + 1):
                        block[r * l + c] += zr * z[i, c]


def mirror_blocks(double[:, :, ::1] blocks):
    """Fill the upper triangles of blocks (q, l, l) from the lower ones."""
    cdef Py_ssize_t i, r, c
    with nogil:
        for i in range(blocks.shape[0]):
            for r in range(blocks.shape[1]):
                for c in range(r):
                    blocks[i, c, r] = blocks[i, r, c]


def level_sums(const int32_t[::1] codes, const double[:, ::1] z, const double[::1] w,
               const double[:, ::1] d, double[:, ::1] out):
    """Add Z'WD of these rows to ``out``.

    Parameters
    ----------
    codes : (n,) int32
    z : (n, l) float64 or None
    w : (n,) float64 or None
    d : (n, k) float64
        Dense columns (fixed effects and response).
    out : (q * l, k) float64
        Accumulated in place, so that rows can be passed chunk by chunk.
    """
    cdef Py_ssize_t n = codes.shape[0], l = 1 if z is None else z.shape[1], k = d.shape[1]
    if d.shape[0] != n or out.shape[1] != k or (z is not None and z.shape[0] != n) or (w is not None and len(w) != n):
        raise ValueError("rows or columns do not match")
    if n == 0 or k == 0:
        return
    cdef const double *z_rows = NULL
    cdef const double *w_rows = NULL
    if z is not None:
        z_rows = &z[0, 0]
    if w is not None:
        w_rows = &w[0]
    with nogil:
        add_level_sums(&codes[0], z_rows, w_rows, &d[0, 0], &out[0, 0], n, l, k)


def pair_cells(const int64_t[::1] ptr, const int64_t[::1] rows,
               const double[:, ::1] zg, const int32_t[::1] codes_h, Py_ssize_t qh, const double[:, ::1] zh,
               const double[::1] w):
    """Z_g'WZ_h as block compressed rows.

    Parameters
    ----------
    ptr, rows
        Rows sorted by the levels of g, from `sort_rows`.
    zg : (n, l_g) float64 or None
    codes_h : (n,) int32
    qh : int
    zh : (n, l_h) float64 or None
    w : (n,) float64 or None

    Returns
    -------
    cell_ptr : (q_g + 1,) int64
    cell_idx : (n_cells,) int32
        Levels of h that occur with each level of g, in order of first occurrence.
    cell_val : (n_cells, l_g, l_h) float64
    """
    cdef Py_ssize_t qg = ptr.shape[0] - 1
    cdef Py_ssize_t lg = 1 if zg is None else zg.shape[1], lh = 1 if zh is None else zh.shape[1]
    cdef Py_ssize_t g, t, r, c, size = lg * lh
    cdef int64_t i, n_cells = 0, cell
    cdef int32_t h
    cdef double wi = 1.0, wz
    cdef double *block
    cell_ptr_ = np.empty(qg + 1, np.int64)
    seen_ = np.full(qh, -1, np.int64)  # last level of g that met this level of h, then the cell of the pair
    cdef int64_t[::1] cell_ptr = cell_ptr_, seen = seen_
    with nogil:
        for g in range(qg):
            cell_ptr[g] = n_cells
            for t in range(ptr[g], ptr[g + 1]):
                h = codes_h[rows[t]]
                if seen[h] != g:
                    seen[h] = g
                    n_cells += 1
        cell_ptr[qg] = n_cells
    cell_idx_ = np.empty(n_cells, np.int32)
    cell_val_ = np.zeros((n_cells, lg, lh))
    if n_cells == 0:
        return cell_ptr_, cell_idx_, cell_val_
    seen_[:] = -1
    cdef int32_t[::1] cell_idx = cell_idx_
    cdef double[:, :, ::1] cell_val = cell_val_
    with nogil:
        n_cells = 0
        for g in range(qg):
            for t in range(ptr[g], ptr[g + 1]):
                i = rows[t]
                h = codes_h[i]
                cell = seen[h]
                if cell < cell_ptr[g]:
                    cell = n_cells
                    n_cells += 1
                    seen[h] = cell
                    cell_idx[cell] = h
                if w is not None:
                    wi = w[i]
                block = &cell_val[cell, 0, 0]
                if size == 1:
                    wz = wi
                    if zg is not None:
                        wz *= zg[i, 0]
                    if zh is not None:
                        wz *= zh[i, 0]
                    block[0] += wz
                else:
                    for r in range(lg):
                        wz = wi if zg is None else wi * zg[i, r]
                        for c in range(lh):
                            block[r * lh + c] += wz if zh is None else wz * zh[i, c]
    return cell_ptr_, cell_idx_, cell_val_


def nested_cells(const int32_t[::1] codes_g, Py_ssize_t qg, const double[:, ::1] zg, const int32_t[::1] codes_h,
                 const double[:, ::1] zh, const double[::1] w):
    """Z_g'WZ_h as block compressed rows where g is nested in h; None at the first row that says it is not.

    Parameters
    ----------
    codes_g, codes_h : (n,) int32
    qg : int
    zg, zh, w
        As in `pair_cells`.

    Returns
    -------
    cell_ptr, cell_idx, cell_val
        As in `pair_cells`.
    """
    cdef Py_ssize_t n = codes_g.shape[0], g, r, c, i
    cdef Py_ssize_t lg = 1 if zg is None else zg.shape[1], lh = 1 if zh is None else zh.shape[1]
    cdef double wi = 1.0, wz
    cdef double *block
    cdef bint nested = True
    parent_, val_ = np.full(qg, -1, np.int32), np.zeros((qg, lg, lh))
    cdef int32_t[::1] parent = parent_
    cdef double[:, :, ::1] val = val_
    if codes_h.shape[0] != n:
        raise ValueError(f"{n} and {codes_h.shape[0]} codes")
    with nogil:
        for i in range(n):
            g = codes_g[i]
            if parent[g] != codes_h[i]:
                if parent[g] >= 0:
                    nested = False
                    break
                parent[g] = codes_h[i]
            if w is not None:
                wi = w[i]
            block = &val[g, 0, 0]
            for r in range(lg):
                wz = wi if zg is None else wi * zg[i, r]
                for c in range(lh):
                    block[r * lh + c] += wz if zh is None else wz * zh[i, c]
    if not nested:
        return None
    ptr_ = np.zeros(qg + 1, np.int64)
    cdef int64_t[::1] ptr = ptr_
    for g in range(qg):
        ptr[g + 1] = ptr[g] + (parent[g] >= 0)
    if ptr[qg] == qg:
        return ptr_, parent_, val_
    seen = parent_ >= 0
    return ptr_, parent_[seen], val_[seen]


def level_ranks(const double[:, :, ::1] blocks, double tolerance):
    """How many levels have rows, and how many dependent columns there are within these levels.

    Parameters
    ----------
    blocks : (q, l, l) float64
        Gram matrices.
    tolerance : float
        A column is dependent where earlier ones leave less than this of its square.

    Returns
    -------
    levels, lacking : int
    """
    cdef Py_ssize_t q = blocks.shape[0], l = blocks.shape[1], j, r, c, x, levels = 0, lacking = 0, rank
    cdef double s
    cdef double[:, ::1] root = np.zeros((l, l))
    with nogil:
        for j in range(q):
            rank = 0
            for c in range(l):
                s = blocks[j, c, c]
                for x in range(c):
                    s -= root[c, x] * root[c, x]
                if s > tolerance * blocks[j, c, c]:
                    rank += 1
                    s = sqrt(s)
                else:
                    s = 0.0
                root[c, c] = s
                for r in range(c + 1, l):
                    root[r, c] = 0.0
                    if s > 0.0:
                        root[r, c] = blocks[j, r, c]
                        for x in range(c):
                            root[r, c] -= root[r, x] * root[c, x]
                        root[r, c] /= s
            if rank:
                levels += 1
                lacking += l - rank
    return levels, lacking
