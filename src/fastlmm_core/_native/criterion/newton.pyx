"""Trust-region Newton minimisation of a criterion in parameters theta, without a return to Python between evaluations.

At each accepted point the model is f + g's + s'Hs/2 with the average-information Hessian; `trust_region` has the step.
theta is unconstrained: a variance of zero is an ordinary stationary point of a smooth even function, and when it is a
saddle the negative curvature leads away from it. Parameters that are held at zero take no part.

Converged when what an interior step will leave is below `tol`: the decrease it promises, times the rate at which those
promises have been shrinking. That last step is taken and kept unless the criterion rises.
The log has one row an evaluation. Cost beside the evaluations: a factor of size n_theta each, or its eigenvectors.
"""

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport NAN, fabs, sqrt
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from fastlmm_core._native.criterion.criterion cimport Criterion
from fastlmm_core._native.criterion.evaluator cimport Evaluator
from fastlmm_core._native.criterion.trust_region cimport TrustRegion

__all__ = ["Newton"]

cdef enum:
    CONVERGED = 0
    OUT_OF_EVALUATIONS = 1
    NO_PROGRESS = 2
    FAILED_AT_START = 3
    INTERRUPTED = 4

cdef double SLOW = 0.1  # promises that shrink less than this call for the secant correction
cdef double LOOSE_SLOPE = 1e-6  # of the largest curvature: a slope below this is none where curvature has been lost
cdef double NOTHING = 1e-2  # of rounding: a step that promises less is not taken where derivatives have rounding too
cdef double SMALL_STEP = 1e-5  # promised decreases above this, or 1000 tol, say nothing of the rate near the minimum


cdef class Newton(TrustRegion):
    """Optimiser workspace for one criterion.

    Parameters
    ----------
    criterion : Criterion
        An `Evaluator`, where `minimise_many` is to be used.
    max_evaluations : int
    tol : float
        Stop when the criterion is expected to be this near its minimum.
    held : (k,) int64 or None
        Parameters that stay at zero.
    rough : bool
        The model Hessian may be far off: the secant correction is made after every step, not only where steps are slow.
    loose : bool
        Parameters may be unidentified, and derivatives have rounding of their own: a direction without curvature is
        left alone though some slope is left, and a step that promises far less than rounding is not taken.
    """

    cdef readonly Criterion criterion
    cdef readonly Py_ssize_t max_evaluations, n_evaluations, n_derivatives
    cdef double[::1] trial
    cdef double[:, ::1] rows
    cdef object log_rows
    cdef int64_t[::1] held
    cdef readonly double value
    cdef object on_evaluation, pending
    cdef bint rough, loose
    cdef const int *stop   # nonzero: somebody wants `minimise_many` to end

    messages = {
        CONVERGED: "converged",
        OUT_OF_EVALUATIONS: "stopped at the limit on evaluations",
        NO_PROGRESS: "stopped: the trust region shrank to nothing without a decrease",
        FAILED_AT_START: "the criterion could not be evaluated at the start",
    }

    def __init__(self, Criterion criterion not None, Py_ssize_t max_evaluations, double tol, held=None,
                 bint rough=False, bint loose=False):
        cdef Py_ssize_t nt = criterion.n_free
        self.ready = False
        if not criterion.ready:
            raise ValueError("the criterion's constructor did not come to its end")
        TrustRegion.__init__(self, nt, tol, LOOSE_SLOPE if loose else 0.0)
        self.criterion, self.max_evaluations, self.rough, self.loose = criterion, max_evaluations, rough, loose
        self.trial = np.zeros(nt)
        self.log_rows = np.zeros((max_evaluations + 1, nt + 3))
        self.rows = self.log_rows
        self.held = np.empty(0, np.int64) if held is None else np.array(held, np.int64)
        if self.held.shape[0] and not 0 <= min(self.held) <= max(self.held) < nt:
            raise ValueError(f"parameters {np.asarray(self.held)} are held, but there are {nt}")
        self.ready = True

    def __reduce__(self):
        raise TypeError("a Newton is a workspace: pickle or copy the model or the result it serves")

    cdef int enter(self) except -1:
        """Begin a call: one at a time, since the criterion's workspace is used throughout."""
        if not self.ready:
            raise ValueError("this Newton cannot be used: its constructor did not come to its end")
        return self.criterion.enter()

    def minimise(self, const double[::1] start not None, on_evaluation=None):
        """Minimise from ``start`` (n_theta,).

        Parameters
        ----------
        on_evaluation : callable or None
            Called with (number, theta, criterion, gradient norm, radius) after each evaluation.

        Returns
        -------
        theta : (n_theta,)
        value : float
        status : int
            Key of `messages`; 0 is convergence.

        Raises
        ------
        KeyboardInterrupt
            Between evaluations; the object can be used again.
        """
        cdef int status
        cdef bint report = on_evaluation is not None
        self.enter()
        try:
            self.criterion.check_length(start)
            self.theta[:] = start
            self.on_evaluation = on_evaluation
            self.stop = NULL
            self.n_evaluations = self.n_derivatives = 0
            with nogil:
                status = self.run(True, report)
            if status == INTERRUPTED:
                error, self.pending = self.pending, None
                raise error
            return np.asarray(self.theta).copy(), self.value, status
        finally:
            self.on_evaluation = None
            self.criterion.leave()

    def minimise_many(self, const double[:, ::1] lead not None, const double[:, ::1] tail not None,
                      const double[:, ::1] xty not None, const double[::1] constants not None,
                      const double[::1] start not None, double[:, ::1] theta not None, double[::1] value not None,
                      double[:, ::1] beta not None, double[:, :, ::1] ld not None, int32_t[:, ::1] outcome not None,
                      const int[::1] stop=None):
        """Minimise for k responses in turn, each from ``start``, without the GIL.

        Parameters
        ----------
        lead, tail, xty : (q * l, k), (m, k), (p, k)
            Cross-products of the conditioned responses, as in `Evaluator.set_response`.
        constants : (k,)
        start : (n_theta,)
        theta, value, beta, ld, outcome : (k, n_theta), (k,), (k, p), (k, p + 1, p + 1), (k, 2)
            Filled in: conditioned estimates, criterion, coefficients, the dense columns' lower factor (its upper
            triangle is left alone), and (status, evaluations); a response that fails leaves NaN.
        stop : (1,) int, optional
            Nonzero ends the work after the evaluation at hand, whichever thread sets it; what is left is not filled in.
        """
        cdef Evaluator evaluator = self.criterion
        cdef Py_ssize_t k = constants.shape[0], p, nt, i, j, c
        cdef int status
        cdef double at = 0.0
        self.enter()
        try:
            p, nt = evaluator.p, evaluator.n_theta
            evaluator.check_length(start)
            if (lead.shape[0] != evaluator.lead.q * evaluator.lead.l or tail.shape[0] != evaluator.lead.m
                    or xty.shape[0] != p or not k == lead.shape[1] == tail.shape[1] == xty.shape[1]):
                raise ValueError("the responses' cross-products do not belong to this model")
            if (not k == theta.shape[0] == value.shape[0] == beta.shape[0] == ld.shape[0] == outcome.shape[0]
                    or theta.shape[1] != nt or beta.shape[1] != p or not p + 1 == ld.shape[1] == ld.shape[2]
                    or outcome.shape[1] != 2):
                raise ValueError("the arrays to fill in do not belong to this model")
            self.stop = &stop[0] if stop is not None else NULL
            with nogil:
                for i in range(k):
                    evaluator.c_set_response(&lead[0, i] if lead.shape[0] else NULL, k,
                                             &tail[0, i] if tail.shape[0] else NULL, k,
                                             &xty[0, i] if p else NULL, k, constants[i])
                    memcpy(&self.theta[0], &start[0], nt * sizeof(double))
                    self.n_evaluations = self.n_derivatives = 0
                    status = self.run(False, False)
                    if status == INTERRUPTED:
                        break
                    if status != FAILED_AT_START and not evaluator.at(&self.theta[0]):
                        if evaluator.c_value(&self.theta[0], &at) != 0:
                            status = FAILED_AT_START
                    outcome[i, 0] = status
                    outcome[i, 1] = <int32_t>self.n_evaluations
                    if status == FAILED_AT_START:
                        for j in range(nt):
                            theta[i, j] = NAN
                        value[i] = NAN
                        for j in range(p):
                            beta[i, j] = NAN
                        continue
                    evaluator.solve_modes()
                    for j in range(nt):
                        theta[i, j] = self.theta[j]
                    value[i] = evaluator.criterion
                    for j in range(p):
                        beta[i, j] = evaluator.beta[j]
                    for j in range(p + 1):
                        for c in range(j + 1):
                            ld[i, j, c] = evaluator.ld[j, c]
        finally:
            self.stop = NULL
            self.criterion.leave()

    def evaluations(self):
        """(k, n_theta + 3) theta, criterion, gradient norm and trust radius, a row an evaluation.

        The norm is NaN at rejected points and at the last one.
        """
        if not self.ready:
            raise ValueError("this Newton cannot be used: its constructor did not come to its end")
        return self.log_rows[:self.n_evaluations].copy()

    def last_derivatives(self):
        """Gradient and model Hessian at the last accepted point but the final step."""
        if not self.ready:
            raise ValueError("this Newton cannot be used: its constructor did not come to its end")
        return np.array(self.gradient), np.array(self.hessian)

    cdef bint interrupted(self, bint report) noexcept with gil:
        """Signals and the caller's report, between evaluations; an exception is kept for `minimise` to raise."""
        cdef Py_ssize_t k = self.n_evaluations, nt = self.n
        try:
            PyErr_CheckSignals()
            if report:
                self.on_evaluation(k, self.log_rows[k - 1, :nt].copy(), self.rows[k - 1, nt], self.rows[k - 1, nt + 1],
                                   self.rows[k - 1, nt + 2])
        except BaseException as error:
            self.pending = error
            return True
        return False

    cdef int run(self, bint interruptible, bint report) noexcept nogil:
        cdef Py_ssize_t nt = self.n, i
        cdef double radius, value = 0.0, noise = 0.0, predicted, ratio, length
        cdef double before, rate, walked
        cdef bint last, bad, corrected = False, interior = False, last_interior = False, have = False
        cdef int status = OUT_OF_EVALUATIONS
        for i in range(self.held.shape[0]):
            self.theta[self.held[i]] = 0.0
        memcpy(&self.trial[0], &self.theta[0], nt * sizeof(double))
        memset(&self.correction[0, 0], 0, nt * nt * sizeof(double))
        predicted = 0.0
        last = False
        length = 0.0
        radius = self.natural_radius()
        while self.n_evaluations < self.max_evaluations:
            if self.stop != NULL and self.stop[0] != 0:
                return INTERRUPTED
            bad = self.criterion.c_value(&self.trial[0], &value) != 0
            self.n_evaluations += 1
            self.record(&self.trial[0], value, radius)
            if not have and bad:
                return FAILED_AT_START
            ratio = -1.0 if bad else self.kept_promise(value, predicted, noise) if have else 1.0
            if last:
                if not bad and value <= self.value + noise:
                    self.accept(value)
                status = CONVERGED
                if interruptible and self.interrupted(report):
                    return INTERRUPTED
                break
            if ratio > 1e-4:
                self.accept(value)
                noise = self.criterion.rounding(value)
                if self.differentiate() != 0:
                    return FAILED_AT_START if self.n_evaluations == 1 else NO_PROGRESS
                have = True
                if ratio > 0.75 and self.n_evaluations > 1:
                    radius = max(radius, 3.0 * length)
                elif ratio < 0.25:
                    radius = 0.5 * length
            else:
                radius = 0.25 * length
                if self.loose and predicted <= 1e3 * max(self.tol, noise) and fabs(self.value - value) <= 100.0 * noise:
                    status = CONVERGED
                    break
                if corrected:  # E may be what misled the step
                    memset(&self.correction[0, 0], 0, nt * nt * sizeof(double))
                    corrected = False
            if interruptible and self.interrupted(report):
                return INTERRUPTED
            before = predicted if last_interior else 0.0
            walked = length
            if self.rough and ratio > 1e-4 and self.n_derivatives > 1:
                self.correct(walked)
                corrected = True
            predicted = self.solve(&radius, &length, &interior)
            if not self.rough and interior and predicted > SLOW * before > 0.0 and ratio > 1e-4:
                self.correct(walked)
                corrected = True
                predicted = self.solve(&radius, &length, &interior)
            # convergence is linear at first: what the step leaves is about predicted times its rate so far
            rate = 1.0
            if interior and before > 0.0 and not self.loose:
                rate = min(1.0, max(1e-3, predicted / before))
            # below the criterion's own rounding error no evaluation can confirm a step
            last = interior and (predicted <= max(self.tol, noise)
                                 or (predicted <= max(SMALL_STEP, 1e3 * self.tol)
                                     and predicted * rate <= self.tol))
            last_interior = interior and ratio > 1e-4
            if self.loose and interior and predicted <= NOTHING * noise:
                status = CONVERGED
                break
            if radius < 1e-12:
                status = NO_PROGRESS
                break
            self.aim()
        return status

    cdef double kept_promise(self, double value, double predicted, double noise) noexcept nogil:
        """What a step gained over what it promised; of a promise below rounding only whether the criterion rose."""
        if self.loose:
            return (self.value - value) / max(predicted, noise)
        if predicted <= noise:
            return 1.0 if value <= self.value + noise else -1.0
        return (self.value - value) / predicted

    cdef void aim(self) noexcept nogil:
        """The next place to evaluate, a step from the last one accepted."""
        cdef Py_ssize_t i
        for i in range(self.n):
            self.trial[i] = self.theta[i] + self.step[i]
        for i in range(self.held.shape[0]):
            self.trial[self.held[i]] = 0.0  # rounding of the eigenvectors would move it

    cdef void record(self, const double *theta, double value, double radius) noexcept nogil:
        cdef Py_ssize_t k = self.n_evaluations - 1, nt = self.n
        memcpy(&self.rows[k, 0], theta, nt * sizeof(double))
        self.rows[k, nt], self.rows[k, nt + 1], self.rows[k, nt + 2] = value, NAN, radius

    cdef void hold(self) noexcept nogil:
        """Take the held parameters out of the gradient and, but for a diagonal, out of the Hessian."""
        cdef Py_ssize_t nt = self.n, i, j, k
        cdef double largest = 0.0
        for k in range(self.held.shape[0]):
            i = self.held[k]
            self.gradient[i] = 0.0
            for j in range(nt):
                self.hessian[i, j] = self.hessian[j, i] = 0.0
        for i in range(nt):
            largest = max(largest, self.hessian[i, i])
        for k in range(self.held.shape[0]):
            self.hessian[self.held[k], self.held[k]] = largest if largest > 0.0 else 1.0

    cdef void accept(self, double value) noexcept nogil:
        memcpy(&self.theta[0], &self.trial[0], self.n * sizeof(double))
        self.value = value

    cdef int differentiate(self) noexcept nogil:
        """Derivatives at the point just accepted; what was there before is kept for the secant correction."""
        cdef Py_ssize_t nt = self.n, i
        cdef double norm = 0.0
        memcpy(&self.before[0], &self.gradient[0], nt * sizeof(double))
        if self.criterion.c_derivatives(&self.gradient[0], &self.hessian[0, 0]) != 0:
            return 1
        self.n_derivatives += 1
        if self.held.shape[0]:
            self.hold()
        for i in range(nt):
            norm += self.gradient[i] * self.gradient[i]
        self.rows[self.n_evaluations - 1, nt + 1] = sqrt(norm)
        memcpy(&self.taken[0], &self.step[0], nt * sizeof(double))
        return 0
