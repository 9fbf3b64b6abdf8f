"""Supernodes: columns of a sparse Cholesky factor that share their rows, and the order in which to visit them.

Consecutive columns whose rows below agree form a supernode, a dense panel of w columns over w + r rows (Ng & Peyton
1993). Their tree is that of the columns. Two supernodes, one the last child of the other, are merged where the zeros
this stores cost less time than is saved (relaxed amalgamation, Ashcraft & Grimes 1989); `node_seconds` is the one model
of time behind that choice, the choice of an order, and the choice of an engine.

Each supernode with children owns a *front*, the r x r square that its columns update (or, for the inverse, are computed
from). Fronts live on a stack at places fixed here. Going down the tree, a parent's front is alive until its last child
has read it; the child that needs most is visited last, so that its parent's front has gone by then, and supernodes at
odd and even depth use opposite ends of the stack, so that what goes is always on top (Liu 1986 has the order for
one-ended stacks). Going up the tree is the same in reverse.

Everything here follows from the elimination tree and the column counts. Cost: a few passes over the columns.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t

__all__ = ["Supernodes", "dense_seconds", "index_maps"]

# measured on one core of a Zen 3 server; only their ratios choose
cdef double FLOP = 2.5e-11        # seconds a flop in large panels
cdef double HALF_SPEED = 280.0    # rows of a panel at which a flop takes twice that
cdef double LOOPS = 3.0           # columns below which loops, without a call, need fewer rows for the same speed
cdef double ENTRY = 6e-10         # seconds an entry that moves between fronts
cdef double NODE = 2e-8           # seconds a supernode


cdef double node_seconds(double w, double r) noexcept nogil:
    """Predicted time of w columns over w + r rows: factor, inverse, and what moves to and from the parent."""
    cdef double flops = w * w * w + 4.0 * w * w * r + 3.0 * w * r * r
    cdef double slowness = 1.0 + HALF_SPEED / (w + r) * w / (w + LOOPS)
    return FLOP * slowness * flops + ENTRY * r * r + NODE


def dense_seconds(Py_ssize_t m):
    """Predicted time of a dense factor and inverse: those of a single supernode."""
    return node_seconds(m, 0.0) if m else 0.0


cdef class Supernodes:
    """Partition of the columns, its tree, its storage.

    Parameters
    ----------
    parent, counts : (m,) int64
        Elimination tree and column counts, from `_ordering.elimination_tree`.

    Attributes
    ----------
    m, n : int
        Columns and supernodes.
    entries : int
        Entries of all panels.
    front_size : int
        Entries of the stack of fronts.
    row_count : int
        Rows below the supernodes' own columns, in all of them together.
    widest, longest, largest : int
        Most columns, most rows below, and most entries below of one supernode.
    seconds : float
        Predicted time of a factor and an inverse.
    """

    def __init__(self, const int64_t[::1] parent not None, const int64_t[::1] counts not None):
        cdef Py_ssize_t s, w, r
        cdef int64_t j
        starts_, below_ = np.empty(parent.shape[0] + 1, np.int64), np.empty(parent.shape[0] + 1, np.int64)
        cdef int64_t[::1] starts = starts_, below = below_
        if counts.shape[0] != parent.shape[0]:
            raise ValueError(f"{counts.shape[0]} counts for {parent.shape[0]} columns")
        self.arguments = None
        self.widest = self.longest = self.largest = 0
        self.m = parent.shape[0]
        self.n = partition(parent, counts, starts, below)
        self.first = starts_[:self.n + 1].copy()
        self.row_ptr, self.panel = np.zeros(self.n + 1, np.int64), np.zeros(self.n + 1, np.int64)
        self.parent = np.full(self.n, -1, np.int32)
        owner_ = np.repeat(np.arange(self.n, dtype=np.int32), np.diff(self.first))
        cdef int32_t[::1] owner = owner_
        self.seconds = 0.0
        for s in range(self.n):
            w, r = self.first[s + 1] - self.first[s], below[s]
            self.row_ptr[s + 1] = self.row_ptr[s] + r
            self.panel[s + 1] = self.panel[s] + w * (w + r)
            self.widest, self.longest = max(self.widest, w), max(self.longest, r)
            self.largest = max(self.largest, w * r)
            self.seconds += node_seconds(w, r)
            j = parent[self.first[s + 1] - 1]
            if j >= 0:
                self.parent[s] = owner[j]
        self.entries, self.row_count = self.panel[self.n], self.row_ptr[self.n]
        self.schedule()
        self.arguments = np.array(parent), np.array(counts)

    def __reduce__(self):
        self.check()
        return Supernodes, self.arguments

    cdef int check(self) except -1:
        """Refuse an object whose constructor did not come to its end."""
        if self.arguments is None:
            raise ValueError("these Supernodes cannot be used: their constructor did not come to its end")
        return 0

    @property
    def starts(self):
        """(n + 1,) columns at which the supernodes begin."""
        self.check()
        return np.asarray(self.first)

    @property
    def bytes(self):
        """Memory of panels, fronts, rows and their places in the parents' fronts."""
        return 8 * (self.entries + self.front_size + self.largest) + 8 * self.row_count + 128 * self.n + 4 * self.m

    cdef void schedule(self):
        """Fronts' places and the order of visits; see the module's note. Parents have higher numbers than children."""
        cdef Py_ssize_t n = self.n, s, p
        cdef int64_t r, peak = 0, base
        self.front, self.order = np.zeros(n, np.int64), np.empty(n, np.int32)
        self.heavy = np.full(n, -1, np.int32)
        # entries of a front; of the stack while a subtree is visited, with and without its heaviest child's
        cdef int64_t[::1] size = np.zeros(n, np.int64), need = np.zeros(n, np.int64), other = np.zeros(n, np.int64)
        cdef int64_t[::1] nodes = np.ones(n, np.int64), place = np.zeros(n, np.int64), cursor = np.zeros(n, np.int64)
        cdef int64_t[::1] own_top = np.zeros(n, np.int64), other_top = np.zeros(n, np.int64)
        cdef int32_t[::1] depth = np.zeros(n, np.int32)
        for s in range(n):
            r = self.row_ptr[s + 1] - self.row_ptr[s]
            if self.heavy[s] >= 0 or self.first[s + 1] - self.first[s] > NARROW:
                size[s] = r * r
            if self.heavy[s] >= 0:
                need[s] = max(need[s], size[s] + size[self.heavy[s]], size[s] + other[s])
            else:
                need[s] = size[s]
            p = self.parent[s]
            if p < 0:
                continue
            nodes[p] += nodes[s]
            if self.heavy[p] < 0 or need[s] > need[p]:
                other[p] = need[p]
                need[p] = need[s]
                self.heavy[p] = <int32_t>s
            else:
                other[p] = max(other[p], need[s])
        base = 0
        for s in range(n - 1, -1, -1):
            p = self.parent[s]
            if p < 0:
                place[s] = base
                base += nodes[s]
                own_top[s] = size[s]
                peak = max(peak, size[s])
            else:
                depth[s] = depth[p] + 1
                own_top[s] = other_top[p] + size[s]
                other_top[s] = own_top[p]
                peak = max(peak, own_top[s] + own_top[p])
                if s == self.heavy[p]:
                    place[s] = place[p] + nodes[p] - nodes[s]
                    other_top[s] -= size[p]
                else:
                    place[s] = cursor[p]
                    cursor[p] += nodes[s]
            cursor[s] = place[s] + 1
            self.order[place[s]] = <int32_t>s
        for s in range(n):
            self.front[s] = peak - own_top[s] if depth[s] % 2 else own_top[s] - size[s]
        self.front_size = peak


cdef Py_ssize_t partition(const int64_t[::1] parent, const int64_t[::1] counts, int64_t[::1] starts,
                          int64_t[::1] below) noexcept:
    """First columns and rows below of the supernodes; returns how many there are."""
    cdef Py_ssize_t m = parent.shape[0], a = 0, b, top = 0, s
    cdef double w, r, w_child
    while a < m:
        b = a  # a run without a stored zero
        while b + 1 < m and parent[b] == b + 1 and counts[b] == counts[b + 1] + 1:
            b += 1
        starts[top], below[top] = a, counts[b] - 1
        a = b + 1
        while top > 0 and parent[starts[top] - 1] >= starts[top] and parent[starts[top] - 1] < a:
            s = top - 1
            w, r, w_child = a - starts[top], below[top], starts[top] - starts[s]
            if node_seconds(w + w_child, r) > node_seconds(w, r) + node_seconds(w_child, below[s]):
                break
            below[s] = below[top]
            top -= 1
        top += 1
    starts[top] = m
    return top


def index_maps(Supernodes tree not None, const int64_t[::1] ptr not None, const int64_t[::1] idx not None):
    """Rows of each supernode, their places in the parent, and where each entry of the pattern goes.

    A row's entries lie in the subtree that its own entries span (Liu 1986), so that walking up from those, row by row,
    lists every supernode's rows in order.

    Parameters
    ----------
    tree : Supernodes
    ptr, idx : int64
        The pattern, as `_ordering` has it.

    Returns
    -------
    rows : (row_count,) int32
        Rows below each supernode's own columns, ascending.
    relative : (row_count,) int32
        Their places among the parent's columns and rows.
    place : (nnz,) int64
        Place of each entry in the panels.
    """
    cdef Py_ssize_t j, s, p, w, height
    cdef int64_t t, x, y
    tree.check()
    if ptr.shape[0] != tree.m + 1 or idx.shape[0] < ptr[tree.m]:
        raise ValueError(f"supernodes of {tree.m} columns, but the pattern has {ptr.shape[0] - 1}")
    rows_, relative_ = np.empty(tree.row_count, np.int32), np.empty(tree.row_count, np.int32)
    place_, fill_ = np.empty(idx.shape[0], np.int64), np.array(tree.row_ptr[:tree.n])
    owner_ = np.repeat(np.arange(tree.n, dtype=np.int32), np.diff(tree.first))
    cdef int32_t[::1] rows = rows_, relative = relative_, owner = owner_, seen = np.full(tree.n, -1, np.int32)
    cdef int64_t[::1] place = place_, fill = fill_
    with nogil:
        for j in range(tree.m):
            seen[owner[j]] = <int32_t>j
            for t in range(ptr[j], ptr[j + 1]):
                s = owner[idx[t]]
                while seen[s] != j:
                    seen[s] = <int32_t>j
                    rows[fill[s]] = <int32_t>j
                    fill[s] += 1
                    s = tree.parent[s]
                s = owner[idx[t]]
                w = tree.first[s + 1] - tree.first[s]
                height = w + tree.row_ptr[s + 1] - tree.row_ptr[s]
                place[t] = tree.panel[s] + (idx[t] - tree.first[s]) * height
                place[t] += j - tree.first[s] if s == owner[j] else w + fill[s] - 1 - tree.row_ptr[s]
        for s in range(tree.n):
            p = tree.parent[s]
            if p < 0:
                continue
            w = tree.first[p + 1] - tree.first[p]
            y = tree.row_ptr[p]
            for x in range(tree.row_ptr[s], tree.row_ptr[s + 1]):
                if rows[x] < tree.first[p + 1]:
                    relative[x] = <int32_t>(rows[x] - tree.first[p])
                    continue
                while rows[y] != rows[x]:
                    y += 1
                relative[x] = <int32_t>(w + y - tree.row_ptr[p])
    return rows_, relative_, place_
