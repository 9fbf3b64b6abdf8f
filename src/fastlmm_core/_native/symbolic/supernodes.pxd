from libc.stdint cimport int32_t, int64_t

cdef enum:
    NARROW = 4  # widest leaf without a front: it updates its parent's directly


cdef class Supernodes:
    cdef readonly Py_ssize_t m, n, entries, front_size, row_count, widest, longest, largest
    cdef readonly double seconds
    cdef tuple arguments             # of the constructor
    cdef int64_t[::1] first          # (n + 1) columns at which supernodes begin
    cdef int64_t[::1] row_ptr        # (n + 1) into the rows below the supernodes' own columns
    cdef int64_t[::1] panel          # (n + 1) into the panels' entries
    cdef int64_t[::1] front          # (n) into the fronts
    cdef int32_t[::1] parent         # (n) -1 for a root
    cdef int32_t[::1] heavy          # (n) the child that is visited last, -1 for a leaf
    cdef int32_t[::1] order          # (n) parents before children
    cdef int check(self) except -1
    cdef void schedule(self)
