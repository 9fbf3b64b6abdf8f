"""The steps of one evaluation one at a time, for the micro-benchmarks: a window on methods that only Cython can call.

Each method repeats one step of `Evaluator.c_value` or `c_derivatives` on the state that the steps before it left. After
`inverse` the factor is gone, so steps are to be called in order: eliminate, scatter, factor, inverse, gather.
"""

from libc.string cimport memset

from fastlmm_core._native.criterion.evaluator cimport Evaluator

__all__ = ["Steps"]


cdef class Steps:
    """The steps for one evaluator, at the θ of its last value."""

    cdef Evaluator evaluator
    cdef double[::1] out

    def __init__(self, Evaluator evaluator):
        import numpy as np

        self.evaluator = evaluator
        self.out = np.zeros(evaluator.lead.l * evaluator.lead.l)

    def scatter(self):
        """Leading levels eliminated and scattered into the Schur complement."""
        with nogil:
            self.evaluator.eliminate()

    def factor(self):
        """S scaled from C and factored: dense or supernodal; then the dense columns."""
        cdef int status
        with nogil:
            status = self.evaluator.finish(&self.evaluator.lam[0])
        if status != 0:
            raise ArithmeticError("the factorisation failed")

    def inverse(self):
        """Entries of the inverse from the factor: all of them, or those on its pattern."""
        cdef int status
        with nogil:
            status = self.evaluator.tail.inverse(False)
        if status != 0:
            raise ArithmeticError("the inverse failed")

    def gather(self):
        """The leading term's gradient block gathered from the inverse."""
        memset(&self.out[0], 0, self.out.shape[0] * sizeof(double))
        with nogil:
            self.evaluator.tail.gather(&self.evaluator.lead, &self.out[0], False, &self.evaluator.work[0])
