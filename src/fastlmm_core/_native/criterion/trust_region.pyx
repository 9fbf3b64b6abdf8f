"""The step of a trust-region Newton method, and what its model of the Hessian misses.

The model is f + g's + s'(H + E)s/2. The step is Newton's, by a Cholesky factor, where H + E is positive definite and
the step lies in a ball; otherwise it is the exact minimiser on the ball (Moré & Sorensen 1983) through the
eigendecomposition H + E = Q diag(w) Q': s = -Q (g^ / (w + mu)), where mu >= 0 is the least shift with w + mu > 0 and
|s| <= radius. A direction in which neither curvature nor slope is left is left alone.

E is a structured secant correction: symmetric rank one updates by what H misses of the gradient's change along a step.

In: ``theta``, ``gradient``, ``hessian``. Out: ``step``. Cost: a factor of size n a step, or its eigenvectors.
"""

import numpy as np

from libc.math cimport fabs, sqrt
from scipy.linalg.cython_lapack cimport dsyev

from fastlmm_core._native.small cimport chol, part, solve_lower, solve_lower_t

__all__ = ["TrustRegion"]

cdef double FLAT = 1e-8  # eigenvalues of the Hessian this much smaller than the largest are no curvature


cdef class TrustRegion:
    """Buffers and methods as above.

    Parameters
    ----------
    n : int
        Parameters.
    tol : float
        Slope times radius below this is none, where there is no curvature either.
    slope : float
        So is a slope below this much of the largest curvature.
    """

    def __init__(self, Py_ssize_t n, double tol, double slope=0.0):
        self.n, self.tol, self.slope = n, tol, slope
        cdef Py_ssize_t used = 0, n_work = max(64, 34 * n)
        cdef double[::1] room = np.zeros(8 * n + n_work)
        self.theta, self.gradient, self.step = part(room, &used, n), part(room, &used, n), part(room, &used, n)
        self.eigen, self.rotated = part(room, &used, n), part(room, &used, n)
        self.before, self.lack, self.taken = part(room, &used, n), part(room, &used, n), part(room, &used, n)
        self.work = part(room, &used, n_work)
        cdef double[:, :, ::1] squares = np.zeros((3, n, n))
        self.hessian, self.vectors, self.correction = squares[0], squares[1], squares[2]

    cdef void correct(self, double length) noexcept nogil:
        """Update E from the step taken last, of the given length, and the gradients at its ends."""
        cdef Py_ssize_t nt = self.n, i, j
        cdef double claimed = 0.0, shown = 0.0, scale = 1.0, norm = 0.0, slope = 0.0, es
        for i in range(nt):  # lack = y - H s, what E s should be
            self.lack[i] = self.gradient[i] - self.before[i]
            for j in range(nt):
                self.lack[i] -= self.hessian[i, j] * self.taken[j]
            shown += self.taken[i] * self.lack[i]
            for j in range(nt):
                claimed += self.taken[i] * self.correction[i, j] * self.taken[j]
        if fabs(claimed) > fabs(shown):
            scale = fabs(shown) / fabs(claimed)
        for i in range(nt):
            es = 0.0
            for j in range(nt):
                self.correction[i, j] *= scale
                es += self.correction[i, j] * self.taken[j]
            self.lack[i] -= es
        for i in range(nt):
            norm += self.lack[i] * self.lack[i]
            slope += self.lack[i] * self.taken[i]
        if fabs(slope) > 1e-8 * sqrt(norm) * length:
            for i in range(nt):
                for j in range(nt):
                    self.correction[i, j] += self.lack[i] * self.lack[j] / slope

    cdef void decompose(self) noexcept nogil:
        """Eigendecomposition of the corrected Hessian; row i of ``vectors`` is the i-th eigenvector."""
        cdef int n = <int>self.n, lwork = <int>self.work.shape[0], info = 0
        cdef char jobz = b"V", uplo = b"U"
        cdef Py_ssize_t i, j
        for i in range(n):
            for j in range(n):
                self.vectors[i, j] = self.hessian[i, j] + self.correction[i, j]
        dsyev(&jobz, &uplo, &n, &self.vectors[0, 0], &n, &self.eigen[0], &self.work[0], &lwork, &info)
        for i in range(n):
            self.rotated[i] = 0.0
            for j in range(n):
                self.rotated[i] += self.vectors[i, j] * self.gradient[j]

    cdef double length(self, double mu) noexcept nogil:
        cdef Py_ssize_t i
        cdef double total = 0.0, s
        for i in range(self.n):
            s = self.rotated[i] / (self.eigen[i] + mu)
            total += s * s
        return sqrt(total)

    cdef double solve(self, double *radius, double *length, bint *interior) noexcept nogil:
        """Step into ``step``; returns the predicted decrease. Narrows a ``radius`` that means nothing."""
        cdef double predicted = self.newton_step(radius[0], length)
        interior[0] = predicted >= 0.0
        if interior[0]:
            return predicted
        self.decompose()
        if self.eigen[0] < 0.0:  # far from a minimum the model is good for a step of theta's own size
            radius[0] = min(radius[0], 2.0 * self.natural_radius())
        return self.ball_step(radius[0], length, interior)

    cdef double natural_radius(self) noexcept nogil:
        """max(1, |theta| / 2): conditioning makes one the scale of a relative standard deviation."""
        cdef Py_ssize_t i
        cdef double total = 0.0
        for i in range(self.n):
            total += self.theta[i] * self.theta[i]
        return max(1.0, 0.5 * sqrt(total))

    cdef double newton_step(self, double radius, double *length) noexcept nogil:
        """The unconstrained step by a Cholesky factor; -1 where it is too long, or the Hessian not clearly positive."""
        cdef Py_ssize_t n = self.n, i, j
        cdef double *r = &self.vectors[0, 0]
        cdef double largest = 0.0, total = 0.0, predicted = 0.0
        for i in range(n):
            largest = max(largest, self.hessian[i, i] + self.correction[i, i])
            for j in range(i + 1):
                r[i * n + j] = self.hessian[i, j] + self.correction[i, j]
        if chol(r, n) != 0:
            return -1.0
        for i in range(n):
            if not r[i * n + i] * r[i * n + i] > 1e-9 * largest:
                return -1.0
            self.step[i] = -self.gradient[i]
        solve_lower(r, &self.step[0], n, 1)
        for i in range(n):
            predicted += 0.5 * self.step[i] * self.step[i]
        solve_lower_t(r, &self.step[0], n, 1)
        for i in range(n):
            total += self.step[i] * self.step[i]
        if not total <= radius * radius:
            return -1.0
        length[0] = sqrt(total)
        return predicted

    cdef double ball_step(self, double radius, double *length, bint *interior) noexcept nogil:
        """The minimiser on the ball through the eigendecomposition."""
        cdef Py_ssize_t nt = self.n, i, j, _it
        cdef Py_ssize_t least = 0
        cdef double low, high, mu = 0.0, gap = 0.0, s, total = 0.0, predicted = 0.0, largest, smallest
        largest = max(fabs(self.eigen[0]), fabs(self.eigen[nt - 1]))
        gap = 1e-10 * largest + 1e-300
        for i in range(nt):  # a direction without curvature or slope: nothing to gain, and no obstacle to convergence
            if fabs(self.eigen[i]) <= FLAT * largest and (fabs(self.rotated[i]) * radius <= self.tol
                                                          or fabs(self.rotated[i]) <= self.slope * largest):
                self.eigen[i], self.rotated[i] = largest + 1e-300, 0.0
        for i in range(nt):
            if self.eigen[i] < self.eigen[least]:
                least = i
        smallest = self.eigen[least]
        interior[0] = smallest > gap and self.length(0.0) <= radius
        if not interior[0]:
            low = max(0.0, gap - smallest)
            if self.length(low) > radius:
                high = max(2.0 * low, largest + 1e-300)
                while self.length(high) > radius:
                    high *= 4.0
                for _it in range(200):  # bisection on a monotone function; nt is small
                    mu = 0.5 * (low + high)
                    if self.length(mu) > radius:
                        low = mu
                    else:
                        high = mu
                    if high - low <= 1e-6 * high:
                        break
                mu = high
            else:
                mu = low
        for i in range(nt):
            self.step[i] = 0.0
        for i in range(nt):
            s = -self.rotated[i] / (self.eigen[i] + mu)
            predicted -= s * (self.rotated[i] + 0.5 * self.eigen[i] * s)
            total += s * s
            for j in range(nt):
                self.step[j] += s * self.vectors[i, j]
        if not interior[0] and smallest < 0.0 and total < 0.98 * radius * radius:
            # the hard case: no gradient along the negative curvature, so fill the ball with that eigenvector
            s = sqrt(radius * radius - total)
            if self.rotated[least] > 0.0:
                s = -s
            predicted -= s * (self.rotated[least] + 0.5 * smallest * s)
            for j in range(nt):
                self.step[j] += s * self.vectors[least, j]
            total = radius * radius
        length[0] = sqrt(total)
        return predicted
