"""Inbreeding coefficients of a pedigree (Meuwissen and Luo 1992).

With A = T diag(d) T', the diagonal element of animal i is the sum over its ancestors j of t_ij^2 d_j, where row i of T
is built from the youngest ancestor to the oldest: each gives half of its coefficient to either parent. An animal's
parents come before it, so that

    d_i = 1/2 - (F_sire + F_dam) / 4,    F = -1 for an unknown parent,    F_i = sum_j t_ij^2 d_j - 1

Ancestors wait in a binary heap, the youngest on top; each is pushed once. Full sibs in a row share their F. Cost: the
number of distinct ancestors of each animal, times the logarithm of those that wait. Workspace: 3 q numbers.
"""

import numpy as np

from libc.stdint cimport int64_t

__all__ = ["mendelian_variances"]


cdef inline void push(int64_t *heap, Py_ssize_t *n, int64_t value) noexcept nogil:
    cdef Py_ssize_t i = n[0], up
    n[0] += 1
    while i > 0:
        up = (i - 1) // 2
        if heap[up] >= value:
            break
        heap[i] = heap[up]
        i = up
    heap[i] = value


cdef inline int64_t pop(int64_t *heap, Py_ssize_t *n) noexcept nogil:
    cdef int64_t top = heap[0], last
    cdef Py_ssize_t i = 0, child, m
    n[0] -= 1
    m = n[0]
    if m == 0:
        return top
    last = heap[m]
    while True:
        child = 2 * i + 1
        if child >= m:
            break
        if child + 1 < m and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= last:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = last
    return top


def mendelian_variances(const int64_t[::1] sire not None, const int64_t[::1] dam not None):
    """F (q,) and d (q,) of animals whose parents come before them; -1 is an unknown parent."""
    cdef Py_ssize_t n = sire.shape[0], i, waiting
    cdef int64_t j, s, k
    cdef double half, total, fs, fd
    F_, d_ = np.zeros(n), np.empty(n)
    cdef double[::1] F = F_, d = d_, t = np.zeros(n + 1)
    cdef int64_t[::1] heap = np.empty(n + 1, np.int64)
    for i in range(n):
        if sire[i] >= i or dam[i] >= i or sire[i] < -1 or dam[i] < -1:
            raise ValueError("a parent does not come before its offspring")
    with nogil:
        for i in range(n):
            s, k = sire[i], dam[i]
            fs = F[s] if s >= 0 else -1.0
            fd = F[k] if k >= 0 else -1.0
            d[i] = 0.5 - 0.25 * (fs + fd)
            if s < 0 or k < 0:
                continue
            if i > 0 and sire[i - 1] == s and dam[i - 1] == k:
                F[i] = F[i - 1]
                continue
            total, waiting = 0.0, 0
            t[i] = 1.0
            push(&heap[0], &waiting, i)
            while waiting > 0:
                j = pop(&heap[0], &waiting)
                half = 0.5 * t[j]
                total += t[j] * t[j] * d[j]
                t[j] = 0.0
                s, k = sire[j], dam[j]
                if s >= 0:
                    if t[s] == 0.0:
                        push(&heap[0], &waiting, s)
                    t[s] += half
                if k >= 0:
                    if t[k] == 0.0:
                        push(&heap[0], &waiting, k)
                    t[k] += half
            F[i] = total - 1.0
    return F_, d_
