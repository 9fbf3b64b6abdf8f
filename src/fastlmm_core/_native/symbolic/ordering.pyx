"""Symbolic analysis by CHOLMOD: fill-reducing orders, elimination trees, column counts.

A symmetric pattern comes as the sorted rows of its lower triangle, diagonal included, which CHOLMOD reads as the upper
triangle by columns without a copy. Nothing of CHOLMOD outlives a call, and no value is ever given to it.
"""

import numpy as np

from libc.stdint cimport int64_t

from fastlmm_core._native.symbolic.cholmod cimport (
    CHOLMOD_AMD, CHOLMOD_DOUBLE, CHOLMOD_GIVEN, CHOLMOD_LONG, CHOLMOD_METIS, CHOLMOD_NATURAL, CHOLMOD_OK,
    CHOLMOD_OUT_OF_MEMORY, CHOLMOD_PATTERN, CHOLMOD_SIMPLICIAL, CHOLMOD_TOO_LARGE, cholmod_common, cholmod_factor,
    cholmod_l_analyze, cholmod_l_analyze_ordering, cholmod_l_finish, cholmod_l_free_factor, cholmod_l_start,
    cholmod_sparse)

from fastlmm_core.errors import NumericalError

__all__ = ["elimination_tree", "fill_ordering"]


cdef class Pattern:
    """A matrix header over a pattern's arrays, and a `cholmod_common` of its own."""

    cdef cholmod_common common
    cdef cholmod_sparse matrix
    cdef cholmod_factor *factor
    cdef const int64_t[::1] ptr
    cdef const int64_t[::1] idx

    def __cinit__(self, const int64_t[::1] ptr not None, const int64_t[::1] idx not None):
        if ptr.shape[0] == 0:
            raise ValueError("the pattern has no row pointers")
        cholmod_l_start(&self.common)
        self.common.print_ = 0
        self.common.supernodal = CHOLMOD_SIMPLICIAL
        self.common.nmethods = 1
        self.ptr, self.idx = ptr, idx
        self.matrix.nrow = self.matrix.ncol = self.ptr.shape[0] - 1
        self.matrix.nzmax = self.idx.shape[0]
        self.matrix.p = <void*>&self.ptr[0]
        self.matrix.i = <void*>&self.idx[0] if self.idx.shape[0] else <void*>&self.ptr[0]
        self.matrix.nz = self.matrix.x = self.matrix.z = NULL
        self.matrix.stype = 1
        self.matrix.itype = CHOLMOD_LONG
        self.matrix.xtype = CHOLMOD_PATTERN
        self.matrix.dtype = CHOLMOD_DOUBLE
        self.matrix.sorted = 1
        self.matrix.packed = 1

    def __dealloc__(self):
        if self.factor != NULL:
            cholmod_l_free_factor(&self.factor, &self.common)
        cholmod_l_finish(&self.common)

    def check(self):
        """Raise what the last call's status calls for."""
        cdef int status = self.common.status
        if status == CHOLMOD_OUT_OF_MEMORY or status == CHOLMOD_TOO_LARGE:
            raise MemoryError("the sparse analysis ran out of memory")
        if status != CHOLMOD_OK:
            raise NumericalError(f"the sparse analysis failed with CHOLMOD status {status}")


def fill_ordering(ptr, idx, method="amd"):
    """A fill-reducing, postordered permutation of a symmetric pattern.

    Parameters
    ----------
    ptr : (m + 1,) int64
    idx : (nnz,) int64, sorted within rows
    method : {"amd", "metis"}

    Returns
    -------
    perm : (m,) int64, or None
        New position i holds old index ``perm[i]``. None where CHOLMOD was built without METIS, or METIS gave up.
    """
    cdef int ordering = {"amd": CHOLMOD_AMD, "metis": CHOLMOD_METIS}[method]
    cdef Pattern pattern = Pattern(ptr, idx)
    cdef const int64_t *perm
    pattern.common.method[0].ordering = ordering
    pattern.common.postorder = 1
    pattern.factor = cholmod_l_analyze(&pattern.matrix, &pattern.common)
    if ordering == CHOLMOD_METIS and (pattern.factor == NULL or pattern.common.status != CHOLMOD_OK):
        return None
    pattern.check()
    perm = <const int64_t*>pattern.factor.Perm
    return np.array([perm[i] for i in range(pattern.factor.n)], np.int64)


def elimination_tree(ptr, idx, perm=None):
    """Elimination tree and column counts of the Cholesky factor of a pattern, given or permuted.

    Parameters
    ----------
    ptr, idx, perm
        As `fill_ordering` has them; None leaves the columns where they are.

    Returns
    -------
    parent : (m,) int64
        Parent of each column in the elimination tree, -1 for a root.
    counts : (m,) int64
        Entries of each column of L, its diagonal included.
    """
    cdef Pattern pattern = Pattern(ptr, idx)
    cdef Py_ssize_t m = pattern.ptr.shape[0] - 1
    parent_, counts_ = np.empty(m, np.int64), np.empty(m, np.int64)
    order_ = np.arange(m, dtype=np.int64) if perm is None else np.array(perm, np.int64)
    if len(order_) != m:
        raise ValueError(f"{len(order_)} positions for {m} columns")
    if m == 0:
        return parent_, counts_
    cdef int64_t[::1] parent = parent_, counts = counts_, order = order_, work = np.empty(3 * m, np.int64)
    cholmod_l_analyze_ordering(&pattern.matrix, CHOLMOD_NATURAL if perm is None else CHOLMOD_GIVEN, &order[0], NULL, 0,
                               &parent[0], &work[0], &counts[0], &work[m], &work[2 * m], &pattern.common)
    pattern.check()
    return parent_, counts_
