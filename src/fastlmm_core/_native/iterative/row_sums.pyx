"""How a reduced system moves with the weights of its rows: sums over rows of forms in what is left of each.

What the leading factor leaves of row r of Z_t is e_r = t_r - B_i'K_i z_r, i its leading level, and

    dC / dw_r = e_r e_r'         d log det M / dw_r = z_r'K_i z_r + e_r' Lambda S^-1 Lambda' e_r

so that a probe's part of it for k changes dw at once is one sweep over the rows,

    forms       sum_r v_ra (e_r'x)(e_r'y)       for v (n, k), x and y (m, 8)        O(n (columns + k) 8)
    leverages   z_r'K_i z_r + e_r'P e_r         for P of blocks, a tail level each  O(n columns l)

e_r'x is the row's value less what its level's sum has of it, as in the product with C. For the second, with Q_i = B_i P
B_i' of each level,

    e_r'P e_r = t_r'P t_r - 2 (K_i z_r)'B_i P t_r + (K_i z_r)'Q_i (K_i z_r)
"""

import numpy as np

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from fastlmm_core._native.iterative.row_form cimport RowForm
from fastlmm_core._native.iterative.row_loops cimport KV, MOST, level_sum, row_value, rows_t

__all__ = ["forms", "leverages"]


cdef void level_part(const rows_t *rows, Py_ssize_t i, const double *K, const double *x, double *u) noexcept nogil:
    """u (l, KV) = K_i B_i x."""
    cdef Py_ssize_t l = rows.l, c, d, k
    cdef double s[MOST * KV]
    level_sum(rows, i, x, NULL, s, KV)
    for c in range(l):
        for k in range(KV):
            u[c * KV + k] = 0.0
        for d in range(l):
            for k in range(KV):
                u[c * KV + k] += K[c * l + d] * s[d * KV + k]


cdef inline void row_rest(const rows_t *rows, Py_ssize_t r, const double *x, const double *u, double *e) noexcept nogil:
    """e (KV,) = e_r'x, u (l, KV) the level's part."""
    cdef Py_ssize_t c, k
    cdef double a
    row_value(rows, r, x, e, KV)
    for c in range(rows.l):
        a = 1.0 if rows.z is NULL else rows.z[r * rows.l + c]
        for k in range(KV):
            e[k] -= a * u[c * KV + k]


cdef inline double row_lead(const rows_t *rows, Py_ssize_t r, const double *K, double *kz) noexcept nogil:
    """z_r'K z_r; kz (l,) = K z_r."""
    cdef Py_ssize_t l = rows.l, c, d
    cdef double total = 0.0
    for c in range(l):
        kz[c] = 0.0
        for d in range(l):
            kz[c] += K[c * l + d] * (1.0 if rows.z is NULL else rows.z[r * l + d])
        total += kz[c] * (1.0 if rows.z is NULL else rows.z[r * l + c])
    return total


cdef void level_forms(const rows_t *rows, Py_ssize_t i, const double *K, const double *x, const double *y,
                      const double *v, Py_ssize_t n_v, double *out) noexcept nogil:
    """out (n_v, KV) += level i's part."""
    cdef Py_ssize_t r, a, k
    cdef double ux[MOST * KV]
    cdef double uy[MOST * KV]
    cdef double ex[KV]
    cdef double ey[KV]
    level_part(rows, i, K, x, ux)
    level_part(rows, i, K, y, uy)
    for r in range(rows.ptr[i], rows.ptr[i + 1]):
        row_rest(rows, r, x, ux, ex)
        row_rest(rows, r, y, uy, ey)
        for k in range(KV):
            ex[k] *= ey[k]
        for a in range(n_v):
            for k in range(KV):
                out[a * KV + k] += v[r * n_v + a] * ex[k]


def forms(RowForm form, const double[:, :, ::1] K, const double[:, ::1] x, const double[:, ::1] y,
          const double[:, ::1] v):
    """Sums over rows of v_ra (e_r'x)(e_r'y).

    Parameters
    ----------
    form : RowForm
    K : (q, l, l)
    x, y : (m, 8)
    v : (n, k)
        Of the rows, in the order that ``form`` has them.

    Returns
    -------
    (k, 8)
    """
    cdef Py_ssize_t p, i, size = form.l * form.l, n_v = v.shape[1], spot = form.m * KV
    form.check((K.shape[0], K.shape[1], K.shape[2]), (form.q, form.l, form.l))
    form.check((x.shape[0], x.shape[1]), (form.m, KV))
    form.check((y.shape[0], y.shape[1]), (form.m, KV))
    form.check((v.shape[0],), (form.n,))
    sums_ = np.zeros((form.parts, n_v, KV))
    if n_v == 0:
        return np.zeros((0, KV))
    cdef double[:, :, ::1] sums = sums_
    cdef const double *k0 = &K[0, 0, 0]
    cdef double *x0 = &form.given[0, 0]
    cdef double *y0 = &form.buffer[0, 0, 0]
    memcpy(x0, &x[0, 0], spot * sizeof(double))
    memcpy(y0, &y[0, 0], spot * sizeof(double))
    for p in prange(form.parts, schedule="dynamic", num_threads=form.threads, nogil=True):
        for i in range(form.part[p], form.part[p + 1]):
            level_forms(&form.rows, i, k0 + i * size, x0, y0, &v[0, 0], n_v, &sums[p, 0, 0])
    out = sums_[0]
    for own in sums_[1:]:
        out = out + own
    return out


cdef struct tails_t:
    const int64_t *starts   # first tail column of each factor
    const int64_t *offset   # where each factor's blocks begin in P
    const double *P


cdef struct level_t:
    double *b               # (m, l) zeros: B_i' of the level at hand
    int32_t *seen           # (m,) zeros: whether a tail level has been met
    int32_t *columns        # (longest,) first columns of those that have been
    int32_t *factor         # (longest,) their factors


cdef Py_ssize_t collect(const rows_t *rows, Py_ssize_t i, level_t *own) noexcept nogil:
    """B_i' of level i, and how many tail levels it meets."""
    cdef Py_ssize_t l = rows.l, nf = rows.nf, r, f, e, c, o, count = 0
    cdef double w, value
    cdef int32_t j
    for r in range(rows.ptr[i], rows.ptr[i + 1]):
        w = 1.0 if rows.w is NULL else rows.w[r]
        o = r * rows.nt
        for f in range(nf):
            j = rows.codes[r * nf + f]
            if not own.seen[j]:
                own.seen[j] = 1
                own.columns[count], own.factor[count] = j, <int32_t> f
                count += 1
            for e in range(rows.widths[f]):
                value = w if rows.t is NULL else w * rows.t[o]
                o += 1
                for c in range(l):
                    own.b[(j + e) * l + c] += value if rows.z is NULL else value * rows.z[r * l + c]
    return count


cdef inline double row_leverage(const rows_t *rows, Py_ssize_t r, const tails_t *tails, const double *b,
                                const double *Q, const double *K) noexcept nogil:
    """z_r'K z_r + e_r'P e_r."""
    cdef Py_ssize_t l = rows.l, nf = rows.nf, f, c, d, e, o = r * rows.nt, at, width
    cdef double kz[MOST]
    cdef double pt[MOST]
    cdef double value, total = row_lead(rows, r, K, kz)
    cdef int32_t j
    for c in range(l):
        for d in range(l):
            total += kz[c] * Q[c * l + d] * kz[d]
    for f in range(nf):
        j, width = rows.codes[r * nf + f], rows.widths[f]
        at = tails.offset[f] + (j - tails.starts[f]) * width
        for e in range(width):
            pt[e] = 0.0
            for d in range(width):
                pt[e] += tails.P[at + e * width + d] * (1.0 if rows.t is NULL else rows.t[o + d])
        for e in range(width):
            value = 1.0 if rows.t is NULL else rows.t[o + e]
            for c in range(l):
                value -= 2.0 * kz[c] * b[(j + e) * l + c]
            total += value * pt[e]
        o += width
    return total


cdef void part_leverages(const rows_t *rows, Py_ssize_t first, Py_ssize_t stop, const tails_t *tails, const double *K,
                         level_t *own, double *out) noexcept nogil:
    """Leverages of some levels' rows."""
    cdef Py_ssize_t l = rows.l, i, r, f, c, d, e, o, a, at, width, count
    cdef double Q[MOST * MOST]
    cdef double value
    cdef int32_t j
    for i in range(first, stop):
        count = collect(rows, i, own)
        for c in range(l * l):
            Q[c] = 0.0
        for a in range(count):
            j, f = own.columns[a], own.factor[a]
            width = rows.widths[f]
            at = tails.offset[f] + (j - tails.starts[f]) * width
            for e in range(width):
                for d in range(width):
                    value = tails.P[at + e * width + d]
                    for c in range(l):
                        for o in range(l):
                            Q[c * l + o] += value * own.b[(j + e) * l + c] * own.b[(j + d) * l + o]
        for r in range(rows.ptr[i], rows.ptr[i + 1]):
            out[r] = row_leverage(rows, r, tails, own.b, Q, K + i * l * l)
        for a in range(count):
            j = own.columns[a]
            memset(own.b + j * l, 0, rows.widths[own.factor[a]] * l * sizeof(double))
            own.seen[j] = 0


def leverages(RowForm form, const double[:, :, ::1] K, list blocks):
    """z_r'K_i z_r + e_r'P e_r of each row (n,).

    Threads share the parts of the levels that products have, each with workspace of its own.

    Parameters
    ----------
    form : RowForm
    K : (q, l, l)
    blocks : list of (levels, w, w)
        P, an array a tail factor.
    """
    cdef Py_ssize_t l = form.l, p, longest = int(np.diff(form.ptr).max()) * form.rows.nf
    form.check((K.shape[0], K.shape[1], K.shape[2]), (form.q, l, l))
    flat = [np.ascontiguousarray(block, np.float64) for block in blocks]
    expected = [(int(q), int(w), int(w)) for q, w in zip(form.kept[5], form.kept[6], strict=True)]
    if [block.shape for block in flat] != expected:
        raise ValueError(f"blocks of shapes {[block.shape for block in flat]} where {expected} were expected")
    cdef double[::1] P = np.concatenate([block.ravel() for block in flat])
    cdef int64_t[::1] offset = np.concatenate([[0], np.cumsum([block.size for block in flat])]).astype(np.int64)
    out_ = np.empty(form.n)
    cdef double[::1] out = out_
    cdef double[:, ::1] b = np.zeros((form.parts, form.m * l))
    cdef int32_t[:, ::1] seen = np.zeros((form.parts, form.m), np.int32)
    cdef int32_t[:, :, ::1] met = np.empty((form.parts, 2, longest), np.int32)
    cdef tails_t tails
    tails.starts, tails.offset, tails.P = &form.starts[0], &offset[0], &P[0]
    cdef level_t own[8]
    for p in range(form.parts):
        own[p].b, own[p].seen, own[p].columns, own[p].factor = &b[p, 0], &seen[p, 0], &met[p, 0, 0], &met[p, 1, 0]
    for p in prange(form.parts, schedule="dynamic", num_threads=form.threads, nogil=True):
        part_leverages(&form.rows, form.part[p], form.part[p + 1], &tails, &K[0, 0, 0], &own[p], &out[0])
    return out_
