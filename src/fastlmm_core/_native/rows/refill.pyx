"""Cross-products of the same rows with other weights, straight into a layout's order.

Every pass of iterated least squares has new weights. Where a row's products go is found once (an int32 a row and factor
beside the leading one), so that a pass is

    refill      A_i = sum w z z',  B_i = sum w z_0 z_h',  tail rows = sum w z_g z_h'       O(n (sum l)^2), no sort
    sums        Z'D for columns D of the rows                                              (k, q l) and (k, m)
    products    Z b for effects b                                                          (k, n)

Where nothing is eliminated beforehand, the first factor is one of no levels and the rest are the rows' own.

Threads share out levels: each number has one owner, and a level's rows are added in their order, so the result is the
same for any number of threads, and the same bits as `crossprod`'s. Rows that lie in the order of the leading factor's
levels are read straight through; others through a list of row numbers, one a factor.
"""

import numpy as np

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from fastlmm_core._native.criterion.values cimport Values

from fastlmm_core._native.rows.crossprod import sort_rows

__all__ = ["RowPlaces"]

cdef enum:
    MOST = 16  # factors


def grouped(keys, Py_ssize_t size):
    """(size + 1,) int64 and row numbers (int32) of rows grouped by ``keys``; None for rows that lie so already."""
    if (np.diff(keys) >= 0).all():
        return np.append(0, np.cumsum(np.bincount(keys, minlength=size))).astype(np.int64), None
    ptr, rows = sort_rows(keys, size)
    return ptr, rows.astype(np.int32)


def leading_places(const int64_t[::1] ptr, const int32_t[::1] idx, const int32_t[::1] level, const int32_t[::1] column):
    """Place of each row's tail column in the sorted list of its leading level, counted from the list's start."""
    cdef Py_ssize_t n = level.shape[0], i
    cdef int64_t low, high, mid
    out_ = np.empty(n, np.int32)
    cdef int32_t[::1] out = out_
    with nogil:
        for i in range(n):
            low, high = ptr[level[i]], ptr[level[i] + 1]
            while low < high:
                mid = (low + high) // 2
                if idx[mid] < column[i]:
                    low = mid + 1
                else:
                    high = mid
            out[i] = <int32_t>(low - ptr[level[i]])
    return out_


cdef class RowPlaces:
    """Rows of a layout, and where their products go.

    Parameters
    ----------
    codes : list of (n,) int32
        Level of each row, a list entry a factor, the leading one first.
    columns : list of ((n, l) float64 or None)
        Conditioned columns; None for a column of ones.
    levels : list of int
    offsets : list of (q,) int64
        For each factor but the leading one, the tail column at which each level begins; for all where none leads.
    arrays : dict
        Index arrays of the layout.
    threads : int

    Attributes
    ----------
    values : Values
        What `refill` writes; to be loaded by an evaluator once.
    """

    def __init__(self, list codes, list columns, list levels, list offsets, dict arrays, int threads):
        cdef Py_ssize_t g, h, k = len(codes), shift = len(offsets) - len(codes) + 1
        cdef factor_t *f
        cdef const int32_t[::1] ints
        cdef const int64_t[::1] longs
        cdef const double[:, ::1] z
        if k + shift > MOST:
            raise ValueError(f"{k} grouping factors, at most {MOST - shift}")
        if shift not in (0, 1):
            raise ValueError(f"{len(offsets)} lists of places for {k} factors")
        self.n, self.n_factors, self.n_pairs, self.threads = len(codes[0]), k + shift, 0, threads
        self.m = len(arrays["a_ptr"]) - 1
        self.ptr, self.a_ptr = arrays["ptr"], arrays["a_ptr"]
        self.owned = [codes, columns, offsets, arrays]
        if shift:
            f = &self.factors[0]
            f.q, f.l, f.codes, f.z, f.offset, f.place = 0, 1, NULL, NULL, NULL, NULL
            self.keep_part(&f.part, np.zeros(1, np.int64), None)
        rows = None
        for g in range(shift, k + shift):
            f = &self.factors[g]
            ints, z = codes[g - shift], columns[g - shift]
            if ints.shape[0] != self.n or (z is not None and z.shape[0] != self.n) or not self.n:
                raise ValueError("codes and columns differ in their rows")
            f.q, f.l, f.codes = levels[g - shift], 1 if z is None else z.shape[1], &ints[0]
            f.z = NULL
            if z is not None:
                f.z = &z[0, 0]
            f.offset = f.place = NULL
            ptr, order = grouped(codes[g - shift], f.q)
            self.keep_part(&f.part, ptr, order)
            if g == 0:
                rows = order
                continue
            longs = offsets[g - 1]
            f.offset = &longs[0]
            if shift:
                continue
            first, column = codes[0], offsets[g - 1][codes[g]].astype(np.int32)
            if rows is not None:
                first, column = first[rows], column[rows]
            ints = leading_places(self.ptr, arrays["idx"], first, column)
            self.owned.append(ints)
            f.place = &ints[0]
        for g in range(1, k + shift):
            for h in range(g + 1, k + shift):
                self.add_pair(g, h, offsets[g - 1][codes[g - shift]], offsets[h - 1][codes[h - shift]], arrays)
        l = self.factors[0].l
        # an empty leading factor still has an address
        blocks, cells = np.zeros((max(1, self.factors[0].q), l, l)), np.zeros(l * len(arrays["idx"]))
        tail = np.zeros(len(arrays["a_idx"]))
        self.blocks, self.cells, self.tail = blocks, cells, tail
        self.values = Values(blocks, cells, tail, np.zeros((max(1, self.factors[0].q * l), 1)), np.zeros((1, self.m)),
                             np.ones((1, 1)), self.n)

    cdef keep_part(self, part_t *part, ptr, rows):
        cdef const int64_t[::1] longs = ptr
        cdef const int32_t[::1] ints
        self.owned += [ptr, rows]
        part.n, part.ptr, part.rows = longs.shape[0] - 1, &longs[0], NULL
        if rows is not None:
            ints = rows
            part.rows = &ints[0]

    cdef add_pair(self, Py_ssize_t g, Py_ssize_t h, start_g, start_h, dict arrays):
        """Rows by the block row of the tail that their cell lies in, and the cell's place there."""
        cdef pair_t *p = &self.pairs[self.n_pairs]
        cdef const int32_t[::1] ints
        row, column = np.maximum(start_g, start_h), np.minimum(start_g, start_h)
        ptr, rows = grouped(row.astype(np.int32), self.m)
        if rows is not None:
            row, column = row[rows], column[rows]
        a_ptr = np.asarray(self.a_ptr)
        keys = np.repeat(np.arange(self.m), np.diff(a_ptr)) * self.m + arrays["a_idx"]
        order = np.argsort(keys)
        ints = (order[np.searchsorted(keys[order], row * self.m + column)] - a_ptr[row]).astype(np.int32)
        self.owned.append(ints)
        p.g, p.h, p.place = g, h, &ints[0]
        self.keep_part(&p.part, ptr, rows)
        self.n_pairs += 1

    def refill(self, const double[::1] w):
        """Write the cross-products with weights ``w`` (n,) into `values`.

        Returns
        -------
        Values
            The same object each time. Evaluators that have loaded it know that their factors are of older numbers.
        """
        cdef Py_ssize_t i, g
        cdef double total = 0.0
        if self.values is None:
            raise ValueError("these RowPlaces cannot be used: their constructor did not come to its end")
        if w.shape[0] != self.n:
            raise ValueError(f"{w.shape[0]} weights for {self.n} rows")
        self.values.version += 1
        with nogil:
            for i in prange(self.factors[0].q, schedule="static", num_threads=self.threads):
                self.fill_leading(i, &w[0])
            for g in range(1, self.n_factors):
                for i in prange(self.factors[g].q, schedule="static", num_threads=self.threads):
                    self.fill_tail(&self.factors[g], i, &w[0])
            for g in range(self.n_pairs):
                for i in prange(self.m, schedule="static", num_threads=self.threads):
                    self.fill_pair(&self.pairs[g], i, &w[0])
            for i in range(self.n):
                total = total + w[i]
        self.values.total_weight = total
        return self.values

    cdef void fill_leading(self, Py_ssize_t i, const double *w) noexcept nogil:
        """A_i, and the level's row block against the tail."""
        cdef factor_t *f = &self.factors[0]
        cdef const factor_t *other
        cdef Py_ssize_t l = f.l, r, c, g, row
        cdef int64_t t, width = self.ptr[i + 1] - self.ptr[i]
        cdef double *a = &self.blocks[i, 0, 0]
        cdef double *b = NULL
        cdef double *cell
        cdef double wz
        memset(a, 0, l * l * sizeof(double))
        if width:
            b = &self.cells[l * self.ptr[i]]
            memset(b, 0, l * width * sizeof(double))
        for t in range(f.part.ptr[i], f.part.ptr[i + 1]):
            row = t if f.part.rows is NULL else f.part.rows[t]
            for r in range(l):
                wz = w[row] if f.z is NULL else w[row] * f.z[row * l + r]
                for c in range(r + 1):
                    a[r * l + c] += wz if f.z is NULL else wz * f.z[row * l + c]
                for g in range(1, self.n_factors):
                    other = &self.factors[g]
                    cell = b + r * width + other.place[t]
                    if other.z is NULL:
                        cell[0] += wz
                    else:
                        for c in range(other.l):
                            cell[c] += wz * other.z[row * other.l + c]
        for r in range(l):
            for c in range(r):
                a[c * l + r] = a[r * l + c]

    cdef void fill_tail(self, factor_t *f, Py_ssize_t j, const double *w) noexcept nogil:
        """The rows of one level of the tail: its diagonal block, and zeros beside it."""
        cdef Py_ssize_t l = f.l, o = f.offset[j], r, c, row
        cdef int64_t t
        cdef double wz
        for r in range(l):
            memset(&self.tail[self.a_ptr[o + r]], 0, (self.a_ptr[o + r + 1] - self.a_ptr[o + r]) * sizeof(double))
        for t in range(f.part.ptr[j], f.part.ptr[j + 1]):
            row = t if f.part.rows is NULL else f.part.rows[t]
            for r in range(l):
                wz = w[row] if f.z is NULL else w[row] * f.z[row * l + r]
                for c in range(r + 1):
                    self.tail[self.a_ptr[o + r] + c] += wz if f.z is NULL else wz * f.z[row * l + c]

    cdef void fill_pair(self, pair_t *p, Py_ssize_t j, const double *w) noexcept nogil:
        """Cells of two factors of the tail that lie in the block row beginning at column j.

        The x-th row of a block row begins with x entries of the diagonal block more than the first one.
        """
        cdef factor_t *f = &self.factors[p.g]
        cdef factor_t *e = &self.factors[p.h]
        cdef Py_ssize_t r, c, row
        cdef int64_t t, at
        cdef double wz
        cdef bint lower
        for t in range(p.part.ptr[j], p.part.ptr[j + 1]):
            row = t if p.part.rows is NULL else p.part.rows[t]
            lower = f.offset[f.codes[row]] == j
            for r in range(f.l):
                wz = w[row] if f.z is NULL else w[row] * f.z[row * f.l + r]
                for c in range(e.l):
                    if lower:
                        at = self.a_ptr[j + r] + r + p.place[t] + c
                    else:
                        at = self.a_ptr[j + c] + c + p.place[t] + r
                    self.tail[at] += wz if e.z is NULL else wz * e.z[row * e.l + c]

    def sums(self, const double[:, ::1] D):
        """Z'D for columns D of the rows, a row of ``D`` (k, n) each.

        Returns
        -------
        lead, tail : (k, q * l) and (k, m)
            As `Solver.solve` takes them.
        """
        cdef Py_ssize_t k = D.shape[0], g, i, o, v
        cdef factor_t *f
        if D.shape[1] != self.n:
            raise ValueError(f"{D.shape[1]} rows, not {self.n}")
        lead_, tail_ = np.zeros((k, self.factors[0].q * self.factors[0].l)), np.zeros((k, self.m))
        cdef double[:, ::1] lead = lead_, tail = tail_
        for g in range(self.n_factors):
            f = &self.factors[g]
            for i in prange(f.q, schedule="static", num_threads=self.threads, nogil=True):
                o = f.l * i if g == 0 else f.offset[i]
                for v in range(k):
                    level_sum(f, i, &D[v, 0], &lead[v, o] if g == 0 else &tail[v, o])
        return lead_, tail_

    def products(self, const double[:, ::1] lead, const double[:, ::1] tail):
        """Z b, (k, n), for effects of the leading factor (k, q * l) and of the tail (k, m)."""
        cdef Py_ssize_t k = lead.shape[0], g, i, v
        cdef factor_t *f
        if lead.shape[1] != self.factors[0].q * self.factors[0].l or tail.shape[0] != k or tail.shape[1] != self.m:
            raise ValueError("the effects do not belong to these rows")
        out_ = np.zeros((k, self.n))
        cdef double[:, ::1] out = out_
        for v in range(k):
            for g in range(0 if self.factors[0].q else 1, self.n_factors):
                f = &self.factors[g]
                for i in prange(self.n, schedule="static", num_threads=self.threads, nogil=True):
                    if g == 0:
                        out[v, i] += row_product(f, i, &lead[v, f.l * f.codes[i]])
                    else:
                        out[v, i] += row_product(f, i, &tail[v, f.offset[f.codes[i]]])
        return out_


cdef inline void level_sum(const factor_t *f, Py_ssize_t i, const double *d, double *out) noexcept nogil:
    """out += sum z d over the rows of level i."""
    cdef int64_t t
    cdef Py_ssize_t r, row
    for t in range(f.part.ptr[i], f.part.ptr[i + 1]):
        row = t if f.part.rows is NULL else f.part.rows[t]
        if f.z is NULL:
            out[0] += d[row]
        else:
            for r in range(f.l):
                out[r] += f.z[row * f.l + r] * d[row]


cdef inline double row_product(const factor_t *f, Py_ssize_t row, const double *b) noexcept nogil:
    cdef double total = 0.0
    cdef Py_ssize_t r
    if f.z is NULL:
        return b[0]
    for r in range(f.l):
        total += f.z[row * f.l + r] * b[r]
    return total
