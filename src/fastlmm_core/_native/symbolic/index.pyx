"""Index structures of the leading elimination, made once from the cross-products.

The random effects split into the leading grouping factor (q1 levels of l1 columns) and the tail (m scalar columns, in
the plan's order). Three structures come out of this file:

    leading rows   B_i, the l1 x m_i row block of level i against the tail: `ptr` (q1 + 1), sorted columns `idx`, and
                   values in l1 strips of m_i, the strip of row r beginning at l1 * ptr[i] + r * m_i
    their transpose  for each tail column, the levels that hold it (`t_lead`) and its place in `idx` (`t_pos`)
    tail rows      the lower triangle of the tail's own block of Z'WZ, compressed by rows: a row begins with its share
                   of the diagonal block; of another block its entries lie side by side

Patterns and values are separate: `leading_values` and `tail_values` place other numbers on a pattern that stands, in
one pass over the cells.

`schur_pattern` gives the lower pattern of C = A_tt - sum_i B_i' K_i B_i: every pair of columns of a level meets.
`permuted_pattern` sorts it, in the same or another order of the columns.
Patterns come from which levels occur together, never from values.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t

__all__ = [
    "leading_rows", "leading_values", "permuted_pattern", "schur_fill", "schur_pattern", "tail_rows", "tail_values",
]


def leading_rows(Py_ssize_t q, Py_ssize_t m, list pairs):
    """Pattern of the leading row blocks, and its transpose.

    Parameters
    ----------
    q, m : int
        Levels of the leading factor; scalar columns of the tail.
    pairs : list of (cell_ptr, cell_idx, cell_val, offset)
        One entry a tail factor: its cells against the leading factor (`pair_cells`) and the (q_h,) int64 scalar
        column at which each of its levels begins. Of the values only the shape is read.

    Returns
    -------
    ptr (q + 1,) int64, idx (nnz,) int32, t_ptr (m + 1,) int64, t_lead (nnz,) int32, t_pos (nnz,) int64
    """
    ptr_ = np.zeros(q + 1, np.int64)
    t_ptr_ = np.zeros(m + 2, np.int64)
    cdef int64_t[::1] ptr = ptr_, t_ptr = t_ptr_, offset, cell_ptr
    cdef int32_t[::1] cell_idx, idx, t_lead
    cdef int64_t[::1] t_pos, fill
    cdef Py_ssize_t i, c, lh
    cdef int64_t cell, t, p, j, nnz

    for cp, ci, cv, off in pairs:
        cell_ptr, cell_idx, offset, lh = cp, ci, off, cv.shape[2]
        for i in range(q):
            ptr[i + 1] += lh * (cell_ptr[i + 1] - cell_ptr[i])
            for cell in range(cell_ptr[i], cell_ptr[i + 1]):
                for c in range(lh):
                    t_ptr[offset[cell_idx[cell]] + c + 2] += 1
    for i in range(q):
        ptr[i + 1] += ptr[i]
    nnz = ptr[q]
    for j in range(m):
        t_ptr[j + 2] += t_ptr[j + 1]  # t_ptr[j + 1] is now the start of column j, and its end once filled

    idx_, t_lead_, t_pos_ = np.empty(nnz, np.int32), np.empty(nnz, np.int32), np.empty(nnz, np.int64)
    idx, t_lead, t_pos = idx_, t_lead_, t_pos_
    for cp, ci, cv, off in pairs:
        cell_ptr, cell_idx, offset, lh = cp, ci, off, cv.shape[2]
        for i in range(q):
            for cell in range(cell_ptr[i], cell_ptr[i + 1]):
                j = offset[cell_idx[cell]]
                for c in range(lh):
                    t = t_ptr[j + c + 1]
                    t_ptr[j + c + 1] += 1
                    t_lead[t] = <int32_t>i
    fill = ptr_[:q].copy()
    for j in range(m):  # columns in order: each level's list comes out sorted
        for t in range(t_ptr[j], t_ptr[j + 1]):
            i = t_lead[t]
            p = fill[i]
            fill[i] += 1
            idx[p] = <int32_t>j
            t_pos[t] = p
    return ptr_, idx_, t_ptr_[:m + 1].copy(), t_lead_, t_pos_


def leading_values(Py_ssize_t l, const int64_t[::1] ptr, const int64_t[::1] t_ptr, const int64_t[::1] t_pos,
                   list pairs):
    """Values of the leading row blocks.

    Parameters
    ----------
    l : int
        Columns of the leading factor.
    ptr, t_ptr, t_pos
        From `leading_rows`.
    pairs
        As there.

    Returns
    -------
    (l * nnz,) float64
    """
    cdef Py_ssize_t q = ptr.shape[0] - 1, m = t_ptr.shape[0] - 1, i, r, c, lh, width
    cdef int64_t cell, p, j
    cdef const int64_t[::1] cell_ptr, offset
    cdef const int32_t[::1] cell_idx
    cdef const double[:, :, ::1] cell_val
    val_ = np.empty(l * ptr[q])
    cdef double[::1] val = val_
    cdef int64_t[::1] fill = np.empty(m, np.int64)
    for i in range(m):  # the pattern's second loop over, now knowing where each entry went
        fill[i] = t_ptr[i]
    for cp, ci, cv, off in pairs:
        cell_ptr, cell_idx, cell_val, offset, lh = cp, ci, cv, off, cv.shape[2]
        for i in range(q):
            width = ptr[i + 1] - ptr[i]
            for cell in range(cell_ptr[i], cell_ptr[i + 1]):
                j = offset[cell_idx[cell]]
                for c in range(lh):
                    p = t_pos[fill[j + c]]
                    fill[j + c] += 1
                    for r in range(l):
                        val[l * ptr[i] + r * width + p - ptr[i]] = cell_val[cell, r, c]
    return val_


def tail_rows(Py_ssize_t m, list blocks, list pairs):
    """Pattern of the lower triangle (diagonal included) of the tail's block of Z'WZ, by rows, columns unsorted.

    Parameters
    ----------
    m : int
    blocks : list of (val (q_h, l_h, l_h), offset (q_h,))
        Diagonal blocks of each tail factor. Of the values only the shape is read, here and below.
    pairs : list of (cell_ptr, cell_idx, cell_val, offset_g, offset_h)
        Cells between two tail factors g and h, in either order of columns.

    Returns
    -------
    ptr (m + 1,) int64, idx (nnz,) int32
    """
    ptr_ = np.zeros(m + 2, np.int64)
    cdef int64_t[::1] ptr = ptr_, cell_ptr, off_g, off_h
    cdef int32_t[::1] cell_idx, idx
    cdef Py_ssize_t i, r, c, lg, lh, fill
    cdef int64_t cell, og, oh, t
    idx_ = None
    for fill in range(2):  # count, then place
        for bv, off in blocks:
            off_g, lg = off, bv.shape[1]
            for i in range(off_g.shape[0]):
                for r in range(lg):
                    if not fill:
                        ptr[off_g[i] + r + 2] += r + 1
                        continue
                    for c in range(r + 1):
                        t = ptr[off_g[i] + r + 1]
                        ptr[off_g[i] + r + 1] += 1
                        idx[t] = <int32_t>(off_g[i] + c)
        for cp, ci, cv, offg, offh in pairs:
            cell_ptr, cell_idx, off_g, off_h, lg, lh = cp, ci, offg, offh, cv.shape[1], cv.shape[2]
            for i in range(cell_ptr.shape[0] - 1):
                og = off_g[i]
                for cell in range(cell_ptr[i], cell_ptr[i + 1]):
                    oh = off_h[cell_idx[cell]]
                    for r in range(lg):
                        for c in range(lh):
                            if not fill:
                                ptr[max(og + r, oh + c) + 2] += 1
                                continue
                            t = ptr[max(og + r, oh + c) + 1]
                            ptr[max(og + r, oh + c) + 1] += 1
                            idx[t] = <int32_t>min(og + r, oh + c)
        if not fill:
            for i in range(m):
                ptr[i + 2] += ptr[i + 1]
            idx_ = np.empty(ptr[m + 1], np.int32)
            idx = idx_
    return ptr_[:m + 1].copy(), idx_


def tail_values(const int64_t[::1] ptr, list blocks, list pairs):
    """Values of the tail rows.

    Parameters
    ----------
    ptr : (m + 1,) int64
        From `tail_rows`.
    blocks, pairs
        As there.

    Returns
    -------
    (nnz,) float64
    """
    cdef Py_ssize_t m = ptr.shape[0] - 1, i, r, c, lg, lh
    cdef int64_t cell, og, oh, t
    cdef const int64_t[::1] cell_ptr, off_g, off_h
    cdef const int32_t[::1] cell_idx
    cdef const double[:, :, ::1] v
    val_ = np.empty(ptr[m])
    cdef double[::1] val = val_
    cdef int64_t[::1] fill = np.empty(m, np.int64)
    for i in range(m):
        fill[i] = ptr[i]
    for bv, off in blocks:
        v, off_g, lg = bv, off, bv.shape[1]
        for i in range(v.shape[0]):
            for r in range(lg):
                for c in range(r + 1):
                    t = fill[off_g[i] + r]
                    fill[off_g[i] + r] += 1
                    val[t] = v[i, r, c]
    for cp, ci, cv, offg, offh in pairs:
        cell_ptr, cell_idx, v, off_g, off_h, lg, lh = cp, ci, cv, offg, offh, cv.shape[1], cv.shape[2]
        for i in range(cell_ptr.shape[0] - 1):
            og = off_g[i]
            for cell in range(cell_ptr[i], cell_ptr[i + 1]):
                oh = off_h[cell_idx[cell]]
                for r in range(lg):
                    for c in range(lh):
                        t = fill[max(og + r, oh + c)]
                        fill[max(og + r, oh + c)] += 1
                        val[t] = v[cell, r, c]
    return val_


def schur_fill(const int64_t[::1] a_ptr, const int32_t[::1] a_idx, const int64_t[::1] ptr, const int32_t[::1] idx,
               const int64_t[::1] t_ptr, const int32_t[::1] t_lead, const int64_t[::1] t_pos,
               const int64_t[::1] sample):
    """Fraction of the lower triangle of the Schur complement that is structurally nonzero, judged by some of its rows.

    Parameters
    ----------
    sample : int64
        Rows to count. The others are as in `schur_pattern`.
    """
    cdef Py_ssize_t k, j
    cdef int64_t t, p, count = 0, room = 0
    seen_ = np.full(a_ptr.shape[0], -1, np.int64)
    cdef int64_t[::1] seen = seen_
    with nogil:
        for k in range(sample.shape[0]):
            j = sample[k]
            room += j + 1
            for t in range(a_ptr[j], a_ptr[j + 1]):
                if seen[a_idx[t]] != k:
                    seen[a_idx[t]] = k
                    count += 1
            for t in range(t_ptr[j], t_ptr[j + 1]):
                for p in range(ptr[t_lead[t]], t_pos[t] + 1):
                    if seen[idx[p]] != k:
                        seen[idx[p]] = k
                        count += 1
    return count / <double>room


def schur_pattern(const int64_t[::1] a_ptr, const int32_t[::1] a_idx, const int64_t[::1] ptr,
                  const int32_t[::1] idx, const int64_t[::1] t_ptr, const int32_t[::1] t_lead,
                  const int64_t[::1] t_pos, int64_t limit):
    """Lower pattern of the Schur complement C, by rows (columns unsorted), or None past ``limit`` entries.

    Parameters
    ----------
    a_ptr, a_idx
        Tail rows (`tail_rows`).
    ptr, idx, t_ptr, t_lead, t_pos
        Leading rows and their transpose (`leading_rows`).
    limit : int
        Largest number of entries worth storing.

    Returns
    -------
    c_ptr (m + 1,) int64, c_idx (nnz,) int64, or None
    """
    cdef Py_ssize_t m = a_ptr.shape[0] - 1, j, fill
    cdef int64_t t, p, nnz = 0
    cdef int32_t k
    c_ptr_ = np.zeros(m + 1, np.int64)
    seen_ = np.empty(m, np.int32)
    c_idx_ = np.empty(0, np.int64)
    cdef int64_t[::1] c_ptr = c_ptr_, c_idx = c_idx_
    cdef int32_t[::1] seen = seen_
    for fill in range(2):  # count, then place
        seen_[:] = -1
        nnz = 0
        with nogil:
            for j in range(m):
                for t in range(a_ptr[j], a_ptr[j + 1]):
                    k = a_idx[t]
                    if seen[k] != j:
                        seen[k] = <int32_t>j
                        if fill:
                            c_idx[nnz] = k
                        nnz += 1
                for t in range(t_ptr[j], t_ptr[j + 1]):
                    for p in range(ptr[t_lead[t]], t_pos[t] + 1):
                        k = idx[p]
                        if seen[k] != j:
                            seen[k] = <int32_t>j
                            if fill:
                                c_idx[nnz] = k
                            nnz += 1
                c_ptr[j + 1] = nnz
                if nnz > limit:
                    break
        if nnz > limit:
            return None
        if not fill:
            c_idx_ = np.empty(nnz, np.int64)
            c_idx = c_idx_
    return c_ptr_, c_idx_


def permuted_pattern(const int64_t[::1] ptr, const int64_t[::1] idx, const int64_t[::1] position):
    """A symmetric pattern's lower triangle with its columns moved, by sorted rows. Cost: linear.

    Parameters
    ----------
    ptr : (m + 1,) int64
    idx : (nnz,) int64, in any order within rows
    position : (m,) int64
        New place of each column.

    Returns
    -------
    ptr (m + 1,) int64, idx (nnz,) int64
    """
    cdef Py_ssize_t m = position.shape[0], j
    cdef int64_t t, row, column
    ptr_, idx_ = np.zeros(m + 2, np.int64), np.empty(idx.shape[0], np.int64)
    cdef int64_t[::1] by_row = ptr_, out = idx_
    cdef int64_t[::1] by_column = np.zeros(m + 2, np.int64)
    cdef int32_t[::1] rows = np.empty(idx.shape[0], np.int32)
    with nogil:
        for j in range(m):
            row = position[j]
            for t in range(ptr[j], ptr[j + 1]):
                column = position[idx[t]]
                by_column[min(row, column) + 2] += 1
                by_row[max(row, column) + 2] += 1
        for j in range(m):
            by_column[j + 2] += by_column[j + 1]
            by_row[j + 2] += by_row[j + 1]
        for j in range(m):
            row = position[j]
            for t in range(ptr[j], ptr[j + 1]):
                column = position[idx[t]]
                rows[by_column[min(row, column) + 1]] = <int32_t>max(row, column)
                by_column[min(row, column) + 1] += 1
        for j in range(m):  # columns in order: each row comes out sorted
            for t in range(by_column[j], by_column[j + 1]):
                out[by_row[rows[t] + 1]] = j
                by_row[rows[t] + 1] += 1
    return ptr_[:m + 1].copy(), idx_
