"""What an evaluator holds: the index arrays of a layout, the numbers loaded into it, and buffers for one theta.

In: the index arrays of a layout, its tail, and its `Values`. Out: nothing; `Solver` and what derives from it compute.
All that an evaluation needs is allocated here, once. `load` keeps the values but for the dense columns, which
`set_response` may replace. One call at a time: `enter` and `leave` bracket every method that Python sees.
Layout: tail vectors are stored one after another, (k, m); leading ones by level, (q * l, k).
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint16_t

from fastlmm_core._native.criterion.criterion cimport Criterion
from fastlmm_core._native.criterion.values cimport Values
from fastlmm_core._native.small cimport FEW, part
from fastlmm_core._native.tail.tail cimport Tail

from fastlmm_core.errors import InUseError, NumericalError

__all__ = ["Workspace"]


cdef class Workspace(Criterion):
    """Arrays and buffers of one planned model.

    Parameters
    ----------
    arrays : dict
        Index arrays, as laid out by `fastlmm_core.core.layout`; kept, never written to.
    tail : Tail
        The engine.
    n : int
        Observations.
    p : int
        Columns of X (full rank).
    reml : bool
    threads : int
    fixed_scale : bool
        The value is log|M|; p is zero then.

    Notes
    -----
    One thread at a time: what is called while a call on this object, or on another of the same layout, has not returned
    raises `InUseError`, from a callback of the same thread too.
    """

    def __init__(self, dict arrays not None, Tail tail not None, Py_ssize_t n, Py_ssize_t p, bint reml, int threads,
                 bint fixed_scale=False):
        cdef Py_ssize_t q = arrays["ptr"].shape[0] - 1, l = arrays["group_l"][0], m = tail.m, d = p + 1
        cdef const int64_t[::1] longs
        cdef const int32_t[::1] ints
        cdef const uint16_t[::1] shorts
        cdef double[::1] scratch
        cdef double[:, ::1] scratch2
        self.ready = False
        if not tail.ready:
            raise ValueError("the tail's constructor did not come to its end")
        if fixed_scale and (p or reml):
            raise ValueError("a fixed scale goes without dense columns and without REML")
        self.arrays = dict(arrays)
        self.tail, self.reml, self.threads, self.fixed_scale = tail, reml, threads, fixed_scale
        self.p = p
        self.nu = 1.0 if fixed_scale else (n - p if reml else n)
        self.block_ptr, self.block_lam = arrays["block_ptr"], arrays["block_lam"]
        self.block_group, self.column_block = arrays["block_group"], arrays["column_block"]
        self.group_l, self.group_lam, self.group_levels = arrays["group_l"], arrays["group_lam"], arrays["group_levels"]
        self.theta_group, self.theta_row = arrays["theta_group"], arrays["theta_row"]
        self.theta_col = arrays["theta_col"]
        # an empty leading group still has an address
        self.dtd, self.zd_tail, self.zd = np.zeros((d, d)), np.zeros((d, m)), np.zeros((max(1, q * l), d))
        self.n_theta = self.n_free = self.theta_group.shape[0]
        cdef Py_ssize_t a
        self.n_lead_theta = 0
        for a in range(self.n_theta):
            self.n_lead_theta += self.theta_group[a] == 0
        self.n_groups = self.group_l.shape[0]
        self.n_blocks = self.block_ptr.shape[0] - 1

        self.lead.q, self.lead.l, self.lead.m, self.lead.d = q, l, m, d
        self.lead.zd = &self.zd[0, 0]
        longs = arrays["ptr"]
        self.lead.ptr = &longs[0]
        self.lead.short_idx = NULL
        longs = arrays["t_ptr"]
        self.lead.t_ptr = &longs[0]
        if arrays["idx"].shape[0]:
            ints = arrays["idx"]
            self.lead.idx = &ints[0]
            shorts = arrays["short_idx"]
            if shorts.shape[0]:
                self.lead.short_idx = &shorts[0]
            ints = arrays["t_lead"]
            self.lead.t_lead = &ints[0]
            longs = arrays["t_pos"]
            self.lead.t_pos = &longs[0]
            scratch = np.empty(l * arrays["idx"].shape[0])
            self.arrays["u"] = scratch
            self.lead.u = &scratch[0]
        scratch2 = np.empty((max(1, q * l), d))
        self.arrays["ud"] = scratch2
        self.lead.ud = &scratch2[0, 0]

        cdef Py_ssize_t n_lam = arrays["group_lam"][self.n_groups]
        cdef Py_ssize_t n_m = q * l * l + 1, n_shrink = n_m if reml and p else 1
        cdef Py_ssize_t n_work = threads * max(d, l) + (m + 2 * threads) * l * l
        cdef double[::1] room = np.zeros(n_lam + n_m + n_shrink + q + 1 + n_work + q * l + 1 + m + 1)
        cdef Py_ssize_t used = 0
        self.lam = part(room, &used, n_lam)
        self.lead_m, self.shrink = part(room, &used, n_m), part(room, &used, n_shrink)
        self.logd, self.work = part(room, &used, q + 1), part(room, &used, n_work)
        self.t_lead, self.t_tail = part(room, &used, q * l + 1), part(room, &used, m + 1)
        self.c_dense, self.y_dense = np.empty((d, m)), np.empty((d, m))
        beta, b_lead, b_tail, ld = np.zeros(d), np.zeros((max(1, q), l)), np.zeros(m + 1), np.empty((d, d))
        self.beta, self.b_lead, self.b_tail, self.ld = beta, b_lead.reshape(-1), b_tail, ld
        self.solution = (beta, b_lead, b_tail, ld)
        self.ready = True

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} is a workspace: pickle or copy the model or the result it serves")

    # ------------------------------------------------------------------ one user at a time

    cdef int enter(self) except -1:
        """Begin a call that uses the workspace; the GIL is held, so looking and taking are one step."""
        if not self.ready:
            raise ValueError(f"this {type(self).__name__} cannot be used: its constructor did not come to its end")
        if self.tail.busy:
            raise InUseError(
                f"this {type(self).__name__} is at work in another call, or another evaluator of its plan is (in a "
                "forked child: was, in a thread of its parent): each thread, and each callback, needs its own Objective"
            )
        self.tail.busy = True
        return 0

    cdef void leave(self) noexcept:
        self.tail.busy = False

    cdef int check(self, int status, const double[::1] theta) except -1:
        if status != 0:
            raise NumericalError(f"the factorisation failed at theta = {np.asarray(theta)}")
        return 0

    cdef int check_length(self, const double[::1] theta) except -1:
        if self.values is None:
            raise ValueError("no values have been loaded")
        return Criterion.check_length(self, theta)

    # ------------------------------------------------------------------ numbers

    @property
    def calls_blas(self):
        """Whether an evaluation calls BLAS for more than n_theta columns: there is a tail, or many dense columns."""
        return self.ready and (self.tail.m > 0 or self.p >= FEW)

    def load(self, Values values not None, double constant=0.0):
        """Take other numbers on the same pattern; whoever made them may change them in place.

        Parameters
        ----------
        values : Values
            Kept, not copied, but for the dense columns.
        constant : float
            Added to the criterion: undoes the conditioning and holds -sum(log w).
        """
        self.enter()
        try:
            self.take(values, constant)
        finally:
            self.leave()

    cdef int take(self, Values values, double constant) except -1:
        """`load` of a workspace that has been entered."""
        cdef Py_ssize_t q = self.lead.q, l = self.lead.l, d = self.lead.d, m = self.tail.m
        cdef tuple got = (values.a.shape[0], values.a.shape[1], values.val.shape[0], values.tail_val.shape[0])
        if got != (max(q, 1), l, l * self.arrays["idx"].shape[0], self.tail.a_idx.shape[0]):
            raise ValueError("the values do not belong to this layout")
        if not self.fixed_scale:
            if values.zd.shape[0] != max(1, q * l) or values.zd.shape[1] != d or values.zd_tail.shape[1] != m:
                raise ValueError("the dense columns do not belong to this layout")
            self.zd[:, :], self.zd_tail[:, :], self.dtd[:, :] = values.zd, values.zd_tail, values.dtd
        self.values, self.constant, self.current = values, constant, False
        self.lead.a = &values.a[0, 0, 0]
        if values.val.shape[0]:
            self.lead.val = &values.val[0]
        return 0

    def set_response(self, const double[::1] lead not None, const double[::1] tail not None,
                     const double[::1] xty not None, double constant):
        """Replace the response.

        Parameters
        ----------
        lead : (q * l,)
            Z'We of the leading factor, e the conditioned residual of the new response.
        tail : (m,)
            Z'We of the tail, in the plan's order.
        xty : (p,)
            Q'We.
        constant : float
            As in the constructor.
        """
        self.enter()
        try:
            if lead.shape[0] != self.lead.q * self.lead.l or tail.shape[0] != self.tail.m or xty.shape[0] != self.p:
                raise ValueError("the response's cross-products do not belong to this model")
            with nogil:
                self.c_set_response(&lead[0] if lead.shape[0] else NULL, 1, &tail[0] if self.tail.m else NULL, 1,
                                    &xty[0] if self.p else NULL, 1, constant)
        finally:
            self.leave()

    cdef void c_set_response(self, const double *lead, Py_ssize_t lead_step, const double *tail, Py_ssize_t tail_step,
                             const double *xty, Py_ssize_t xty_step, double constant) noexcept nogil:
        cdef Py_ssize_t i, p = self.p
        for i in range(self.lead.q * self.lead.l):
            self.zd[i, p] = lead[i * lead_step]
        for i in range(self.tail.m):
            self.zd_tail[p, i] = tail[i * tail_step]
        for i in range(p):
            self.dtd[p, i] = xty[i * xty_step]
            self.dtd[i, p] = xty[i * xty_step]
        self.constant = constant
        self.current = False
