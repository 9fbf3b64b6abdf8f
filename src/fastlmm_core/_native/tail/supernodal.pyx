"""Supernodal Cholesky factorisation, solves and selected inverse of a sparse matrix S on one fixed pattern.

With L11 (w x w) and L21 (r x w) of a supernode's panel, and U (r x r) what it subtracts from the columns of its rows:

    factor    S11 = L11 L11',  L21 = S21 L11^-T,  U = sum of the children's parts - L21 L21', which is added to the
              parent's panel and front: multifrontal (Duff & Reid 1983; Liu 1992)
    inverse   Y = L21 L11^-1,  Z21 = -Z22 Y,  Z11 = (L11 L11')^-1 - Y'Z21, with Z22 from the parent's panel and front:
              the recurrence of Takahashi, Fagan & Chin (1973), Erisman & Tinney (1975) by supernodes (Campbell & Davis
              1995; Lin et al. 2011). It overwrites the factor.

Every entry of S^-1 on the pattern of L comes out. One list of relative indices a supernode serves both directions.
The steps of one supernode are in `_panels`.

Memory is laid out by `_supernodes`; nothing is allocated here after the constructor. Cost: that of the factor's flops,
sum of w^3/3 + w^2 r + w r^2, about three times as much for the inverse, and r^2 moves a supernode in either.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport NAN, isfinite, log
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dtrsm

from fastlmm_core._native.tail.supernode cimport (
    LARGE, SMALL, WIDE, add_to_parent, finish_panel, leaf_inverse, multiply_front, multiply_parent, node_t,
    panel_cholesky, panel_ratio, read_parent, square_inverse, update_front, update_parent)
from fastlmm_core._native.symbolic.supernodes cimport NARROW, Supernodes
from fastlmm_core._native.tail.tiles cimport tile_size

from fastlmm_core._native.symbolic.ordering import elimination_tree
from fastlmm_core._native.symbolic.supernodes import index_maps
from fastlmm_core.errors import InUseError, NumericalError

__all__ = ["SupernodalCholesky"]

cdef enum:
    VECTORS = 4  # right-hand sides that are solved together


cdef Py_ssize_t inverse_work(Supernodes tree):
    """Workspace of the squares' inverses: a panel of tiles for a wide one, a copy of another."""
    cdef Py_ssize_t panel = tree.widest * tile_size(tree.widest) if tree.widest > WIDE else 0
    return max(panel, min(tree.widest, WIDE) ** 2)


cdef class SupernodalCholesky:
    """Workspace of one pattern.

    Parameters
    ----------
    ptr : (m + 1,) int64
    idx : (nnz,) int64
        Sorted rows of the lower triangle, diagonal included.
    threads : int
        Threads that share out right-hand sides and large supernodes.
    tree : Supernodes, optional
        Those of this pattern, if already made.
    """

    def __init__(self, const int64_t[::1] ptr not None, const int64_t[::1] idx not None, int threads=1,
                 Supernodes tree=None):
        self.state = None
        self.tree = Supernodes(*elimination_tree(ptr, idx)) if tree is None else tree
        if self.tree.m != ptr.shape[0] - 1:
            raise ValueError(f"supernodes of {self.tree.m} columns, but the pattern has {ptr.shape[0] - 1}")
        self.threads = threads
        self.rows, self.relative, self.place = index_maps(self.tree, ptr, idx)
        # one spare entry each: an empty array still has an address
        self.panels, self.fronts = np.zeros(self.tree.entries + 1), np.empty(self.tree.front_size + 1)
        self.solving, self.kept = &self.panels[0], None
        self.work = np.empty(self.tree.largest + inverse_work(self.tree) + 1)
        self.vectors = np.empty(threads * self.tree.longest * VECTORS + 1)
        if self.tree.row_count == 0:
            self.rows = self.relative = np.zeros(1, np.int32)
        self.lay_out()
        self.state = "nothing"

    def __reduce__(self):
        raise TypeError("a SupernodalCholesky is a workspace: pickle or copy the model or the result it serves")

    cdef void lay_out(self):
        """Nodes in the order of visits, and the node of each column."""
        cdef Py_ssize_t n = self.tree.n, i, s, j
        cdef int64_t[::1] at = np.empty(n + 1, np.int64)
        cdef node_t *x
        self.store = np.empty(n * sizeof(node_t) + 1, np.uint8)
        self.owner = np.empty(self.tree.m, np.int32)
        cdef unsigned char[::1] bytes_ = self.store
        self.nodes = <node_t*>&bytes_[0]
        for i in range(n):
            s = self.tree.order[i]
            at[s] = i
            x = self.nodes + i
            x.first = self.tree.first[s]
            x.w = self.tree.first[s + 1] - x.first
            x.r = self.tree.row_ptr[s + 1] - self.tree.row_ptr[s]
            x.height = x.w + x.r
            x.panel = &self.panels[0] + self.tree.panel[s]
            x.front = &self.fronts[0] + self.tree.front[s]
            x.rows = &self.rows[0] + self.tree.row_ptr[s]
            x.to = &self.relative[0] + self.tree.row_ptr[s]
            x.parent = NULL
            x.leaf = self.tree.heavy[s] < 0
            x.direct = x.leaf and x.w <= NARROW
            x.last = False
            x.large = (<double>x.w) * x.height * x.height > LARGE
            if self.tree.parent[s] >= 0:
                x.parent = self.nodes + at[self.tree.parent[s]]
                x.last = self.tree.heavy[self.tree.parent[s]] == s
            for j in range(x.first, x.first + x.w):
                self.owner[j] = <int32_t>i

    @staticmethod
    def bytes(Supernodes tree not None, Py_ssize_t nnz, int threads):
        """Memory of the workspace of a pattern of ``nnz`` entries."""
        return tree.bytes + 8 * (nnz + threads * tree.longest * VECTORS + inverse_work(tree))

    # ------------------------------------------------------------------ Python entry points

    def refactor(self, const double[::1] values not None):
        """Factor the matrix with these ``values`` (nnz,) on the pattern; returns log|S|.

        Raises
        ------
        NumericalError
            The matrix is not positive definite.
        """
        cdef double logdet = 0.0
        cdef Py_ssize_t t
        cdef int status
        self.enter()
        if values.shape[0] != self.place.shape[0]:
            raise ValueError(f"{values.shape[0]} values for a pattern of {self.place.shape[0]} entries")
        self.state = "busy"
        with nogil:
            self.clear()
            for t in range(values.shape[0]):
                self.panels[self.place[t]] = values[t]
            status = self.factor(&logdet)
        self.state = "nothing"
        if status != 0:
            raise NumericalError("the matrix is not positive definite")
        self.state = "factor"
        return logdet

    def solve(self, const double[:, ::1] rhs not None):
        """S^-1 times each row of ``rhs`` (k, m)."""
        self.expect("factor")
        if rhs.shape[1] != self.tree.m:
            raise ValueError(f"right-hand sides have {rhs.shape[1]} entries, not {self.tree.m}")
        out_ = np.array(rhs)
        cdef double[:, ::1] out = out_
        if out_.size:
            self.state = "busy"
            with nogil:
                self.forward(&out[0, 0], out.shape[0])
                self.backward(&out[0, 0], out.shape[0])
            self.state = "factor"
        return out_

    def selected_inverse(self):
        """Entries (nnz,) of S^-1 on the pattern. The factor is used up."""
        self.expect("factor")
        self.state = "busy"
        with nogil:
            self.inverse()
        self.state = "inverse"
        return np.asarray(self.panels)[np.asarray(self.place)]

    cdef int enter(self) except -1:
        """Refuse what cannot be used: one call at a time."""
        if self.state is None:
            raise ValueError("this SupernodalCholesky cannot be used: its constructor did not come to its end")
        if self.state == "busy":
            raise InUseError("this SupernodalCholesky is at work in another thread: each needs one of its own")
        return 0

    cdef int expect(self, str state) except -1:
        self.enter()
        if self.state != state:
            raise ValueError("the matrix has not been factored, or its inverse has taken the factor's place")
        return 0

    # ------------------------------------------------------------------ factor

    cdef void clear(self) noexcept nogil:
        """Zero panels, for the values of the next matrix."""
        self.solving = &self.panels[0]
        memset(&self.panels[0], 0, self.tree.entries * sizeof(double))

    cdef int factor(self, double *logdet) noexcept nogil:
        """L in place of the values in the panels; nonzero where they are not those of a positive definite matrix."""
        cdef Py_ssize_t i, c
        cdef double product = 1.0
        cdef node_t *x
        cdef node_t *y
        logdet[0] = 0.0
        for i in range(self.tree.n - 1, -1, -1):
            x = self.nodes + i
            y = x.parent
            if panel_cholesky(x, self.threads) != 0:
                return 1
            for c in range(x.w):  # pivots are square roots: no product of a bounded one and another overflows
                product *= x.panel[c * x.height + c]
                if not 1e-100 < product < 1e100:
                    logdet[0] += 2.0 * log(product)
                    product = 1.0
            if y == NULL:
                continue
            if x.last:  # going up it is the first child to come
                for c in range(y.r):
                    memset(y.front + c * y.r + c, 0, (y.r - c) * sizeof(double))
            if x.direct:
                update_parent(x)
            else:
                update_front(x, self.threads)
                add_to_parent(x, self.threads)
        logdet[0] += 2.0 * log(product)
        return 0 if isfinite(logdet[0]) else 1  # LAPACK lets a NaN through

    cdef int keep_factor(self) noexcept nogil:
        """Solves go on from a copy of L after `inverse`; the first one allocates it. Nonzero where there is no room."""
        if self.kept is None and not self.make_room():
            return 1
        memcpy(&self.kept[0], &self.panels[0], self.tree.entries * sizeof(double))
        self.solving = &self.kept[0]
        return 0

    cdef bint make_room(self) noexcept with gil:
        try:
            self.kept = np.empty(self.tree.entries + 1)
        except MemoryError:
            return False
        return True

    # ------------------------------------------------------------------ solves

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        cdef Py_ssize_t i
        for i in prange((k + VECTORS - 1) // VECTORS, schedule="static", num_threads=self.threads):
            self.forward_some(x + i * VECTORS * self.tree.m, min(VECTORS, k - i * VECTORS),
                              &self.vectors[0] + threadid() * self.tree.longest * VECTORS)

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        cdef Py_ssize_t i
        for i in prange((k + VECTORS - 1) // VECTORS, schedule="static", num_threads=self.threads):
            self.backward_some(x + i * VECTORS * self.tree.m, min(VECTORS, k - i * VECTORS),
                               &self.vectors[0] + threadid() * self.tree.longest * VECTORS)

    cdef void forward_some(self, double *x, Py_ssize_t k, double *work) noexcept nogil:
        cdef Py_ssize_t i, v, c, a, m = self.tree.m
        cdef const node_t *y
        cdef double xc
        cdef double *z
        cdef const double *column
        cdef double *panel
        cdef char left = b"L", lower = b"L", no = b"N"
        cdef int w, r, height, n = <int>k, ld = <int>m
        cdef double one = 1.0, zero = 0.0
        for i in range(self.tree.n - 1, -1, -1):
            y = self.nodes + i
            panel = self.solving + (y.panel - &self.panels[0])
            if y.w <= SMALL:
                for v in range(k):
                    z = x + v * m
                    for c in range(y.w):
                        column = panel + c * y.height
                        xc = z[y.first + c] / column[c]
                        z[y.first + c] = xc
                        for a in range(c + 1, y.w):
                            z[y.first + a] -= column[a] * xc
                        column += y.w
                        for a in range(y.r):
                            z[y.rows[a]] -= column[a] * xc
                continue
            w, r, height = <int>y.w, <int>y.r, <int>y.height
            dtrsm(&left, &lower, &no, &no, &w, &n, &one, panel, &height, x + y.first, &ld)
            if r:
                dgemm(&no, &no, &r, &n, &w, &one, panel + w, &height, x + y.first, &ld, &zero, work, &r)
                for v in range(k):
                    z = x + v * m
                    for a in range(r):
                        z[y.rows[a]] -= work[v * r + a]

    cdef void backward_some(self, double *x, Py_ssize_t k, double *work) noexcept nogil:
        cdef Py_ssize_t i, v, c, a, m = self.tree.m
        cdef const node_t *y
        cdef double xc
        cdef double *z
        cdef const double *column
        cdef double *panel
        cdef char left = b"L", lower = b"L", no = b"N", yes = b"T"
        cdef int w, r, height, n = <int>k, ld = <int>m
        cdef double one = 1.0, minus = -1.0
        for i in range(self.tree.n):
            y = self.nodes + i
            panel = self.solving + (y.panel - &self.panels[0])
            if y.w <= SMALL:
                for v in range(k):
                    z = x + v * m
                    for c in range(y.w - 1, -1, -1):
                        column = panel + c * y.height
                        xc = z[y.first + c]
                        for a in range(c + 1, y.w):
                            xc -= column[a] * z[y.first + a]
                        for a in range(y.r):
                            xc -= column[y.w + a] * z[y.rows[a]]
                        z[y.first + c] = xc / column[c]
                continue
            w, r, height = <int>y.w, <int>y.r, <int>y.height
            if r:
                for v in range(k):
                    z = x + v * m
                    for a in range(r):
                        work[v * r + a] = z[y.rows[a]]
                dgemm(&yes, &no, &w, &n, &r, &minus, panel + w, &height, work, &r, &one, x + y.first, &ld)
            dtrsm(&left, &lower, &yes, &no, &w, &n, &one, panel, &height, x + y.first, &ld)

    # ------------------------------------------------------------------ selected inverse

    cdef void inverse(self) noexcept nogil:
        """Z in place of L."""
        cdef Py_ssize_t i
        cdef node_t *x
        for i in range(self.tree.n):
            x = self.nodes + i
            if x.direct and x.w == 1:
                leaf_inverse(x, &self.work[0])
                continue
            if x.r:
                panel_ratio(x, self.threads)
                if x.direct:
                    multiply_parent(x, &self.work[0])
                else:
                    read_parent(x, self.threads)
                    multiply_front(x, &self.work[0], self.threads)
            square_inverse(x, &self.work[0] + x.w * x.r, self.threads)
            if x.r:
                finish_panel(x, &self.work[0], self.threads)

    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
        """Entry (j, k), j <= k, of the inverse; NaN outside the pattern."""
        cdef const node_t *x = self.nodes + self.owner[j]
        cdef Py_ssize_t low = 0, high = x.r, mid
        cdef const double *column = x.panel + (j - x.first) * x.height
        if k < x.first + x.w:
            return column[k - x.first]
        while low < high:
            mid = (low + high) // 2
            if x.rows[mid] < k:
                low = mid + 1
            else:
                high = mid
        return column[x.w + low] if low < x.r and x.rows[low] == k else NAN

    cdef void inverse_column(self, Py_ssize_t j, double *out) noexcept nogil:
        """Entries (j, k), k >= j, of the inverse that are on the pattern, each into ``out[k]``."""
        cdef const node_t *x = self.nodes + self.owner[j]
        cdef Py_ssize_t a
        cdef const double *column = x.panel + (j - x.first) * x.height
        for a in range(j - x.first, x.w):
            out[x.first + a] = column[a]
        for a in range(x.r):
            out[x.rows[a]] = column[x.w + a]
