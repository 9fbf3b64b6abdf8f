cdef class Values:
    cdef readonly object blocks, cells, tail, dense_lead, dense_tail, dense
    cdef const double[:, :, ::1] a
    cdef const double[::1] val, tail_val
    cdef const double[:, ::1] zd, zd_tail, dtd
    cdef readonly double total_weight
    cdef readonly bint even
    cdef readonly long long version
