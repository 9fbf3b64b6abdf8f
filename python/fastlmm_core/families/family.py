"""What a family of distributions is: a link, the derivatives of a row's log density, and how to draw from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.families.pointwise import constants, row_derivatives, working_rows
from fastlmm_core.errors import DataError
from fastlmm_core.families.links import Link, as_link

__all__ = ["Family", "Rows"]

Array = NDArray[np.float64]


class Rows(NamedTuple):
    """Derivatives of each row's log density l in its linear predictor eta and in rho, arrays (n,).

    Attributes
    ----------
    l : log density, less what `Family.constant` has
    s : dl/deta
    w, k : -d2l/deta2, the observed weight, and its slope dw/deta
    we, ke : the expected weight and its slope
    lr, sr, wr, wer, lrr : derivatives in rho of l, s, w, we, and the second one of l
    """

    l: Array
    s: Array
    w: Array
    k: Array
    we: Array
    ke: Array
    lr: Array
    sr: Array
    wr: Array
    wer: Array
    lrr: Array


@dataclass(frozen=True, init=False)
class Family(ABC):
    """A distribution of responses given their mean.

    Frozen and small: a name, a link, and the logarithm rho of the extra parameter where that is given. A family of
    one's own derives from this class and defines ``name``, ``links``, `row`, `variance`, `simulate` and, where it has
    an extra parameter, ``parameter`` and `start_rho`; it needs no compiled code.

    Parameters
    ----------
    link : str or Link, optional
        The family's first link when left out.

    Attributes
    ----------
    name : str
    links : tuple of str
        Links it can have, the default first.
    code : int
        The kernels' number; -1 where `row` is Python.
    parameter : str or None
        What the extra parameter is called.
    rho_range : (low, high)
        Where the extra parameter does something; searches treat the deviance as constant beyond.
    fixed_rho : float or None
        Its logarithm, where it is given and not estimated.
    vector : bool
        Whether rho is an array of parameters (`VectorFamily`).
    no_intercept : bool
        Whether the extra parameters have the intercept's place.
    mean_range : (low, high)
        Which means there are, where a link leads beyond.
    concave_links : tuple of str
        Links by which a row's log density is concave in the linear predictor, whatever the response and rho.
    """

    link: Link
    fixed_rho: float | None

    name: ClassVar[str]
    links: ClassVar[tuple[str, ...]]
    code: ClassVar[int] = -1
    parameter: ClassVar[str | None] = None
    rho_range: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    vector: ClassVar[bool] = False
    no_intercept: ClassVar[bool] = False
    mean_range: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    concave_links: ClassVar[tuple[str, ...]] = ()

    def __init__(self, link: str | Link | None = None) -> None:
        object.__setattr__(self, "link", as_link(link, self.links, self.name))
        object.__setattr__(self, "fixed_rho", None)

    @property
    def n_extra(self) -> int:
        """Extra parameters that are estimated: none or one, but for families with an array of them."""
        return int(self.parameter is not None and self.fixed_rho is None)

    @property
    def names(self) -> tuple[str, ...]:
        """What the extra parameters are called, one that is given included."""
        return () if self.parameter is None else (self.parameter,)

    def extra(self, rho: float) -> Array:
        """The extra parameters that are estimated, (n_extra,)."""
        return np.atleast_1d(np.asarray(rho, np.float64))[: self.n_extra]

    def rho_of(self, extra: Array) -> float:
        """Rho from the extra parameters that are estimated (n_extra,), or the one given; 0 where there is none."""
        return float(extra[0]) if self.n_extra else self.fixed_rho or 0.0

    @property
    def one_mode(self) -> bool:
        """Whether random effects have one conditional mode, wherever the search for it begins."""
        return self.link.name in self.concave_links

    # ------------------------------------------------------------------ one row

    def row(self, y: Array, eta: Array, m: Array, rho: float) -> Rows:
        """Log density and derivatives of rows.

        Parameters
        ----------
        y : (n,)
            Responses; successes of a binomial row.
        eta : (n,)
            Linear predictors.
        m : (n,)
            Trials, or prior weights.
        rho : float
            Logarithm of the extra parameter; ignored where there is none.
        """
        return Rows(*row_derivatives(self.code, self.link.code, y, eta, m, rho))

    def working(
        self, y: Array, eta: Array, m: Array, freq: Array, rho: float, out: Array, full: bool, threads: int = 1
    ) -> tuple[float, float, float]:
        """Scores and weights of rows times ``freq``, written into ``out``; sums of l, lr and lrr.

        Parameters
        ----------
        out : (3, n), (5, n) or (8, n)
            Filled in: s, w, we; where ``full`` k and ke as well, and sr, wr and wer if there is room.
        """
        if self.code >= 0:
            return working_rows(self.code, self.link.code, y, eta, m, freq, rho, out, full, threads)
        rows = self.row(y, eta, m, rho)
        f = freq if len(freq) else np.ones(len(y))
        names = ("s", "w", "we", "k", "ke", "sr", "wr", "wer")[: len(out) if full else 3]
        for target, name in zip(out, names, strict=False):
            np.multiply(getattr(rows, name), f, out=target)
        return float(rows.l @ f), float(rows.lr @ f), float(rows.lrr @ f)

    def constant(self, y: Array, m: Array, freq: Array, rho: float) -> tuple[float, float, float]:
        """Sum of what `row` leaves out of l, with two derivatives in rho; ``freq`` (n,) counts rows, or (0,)."""
        return constants(self.code, y, m, freq, rho)

    def loglik(self, y: Array, eta: Array, m: Array, rho: float) -> float:
        """Sum of the log densities, all constants included."""
        return float(self.row(y, eta, m, rho).l.sum()) + self.constant(y, m, np.empty(0), rho)[0]

    # ------------------------------------------------------------------ moments

    def mean(self, eta: Array) -> Array:
        """The mean of a response (of a binomial one: of its proportion)."""
        return self.link.inverse(eta)

    def response_mean(self, mu: Array, rho: float) -> Array:
        """The mean of a response where the link's is mu: mu itself, but for counts without zeros or with more."""
        return mu

    def fitted(self, y: Array, eta: Array, rho: float) -> Array:
        """What a fit says of each row of the data: the response's mean."""
        return self.response_mean(self.mean(eta), rho)

    @property
    def plain(self) -> bool:
        """Whether the link's mean is the response's."""
        return type(self).response_mean is Family.response_mean

    @abstractmethod
    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response (of a binomial one: of its proportion)."""

    @abstractmethod
    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row (successes for a binomial one)."""

    def saturated(self, y: Array, m: Array) -> Array:
        """The mean that fits a row best: the response itself."""
        return y

    # ------------------------------------------------------------------ data and starts

    def check(self, y: Array, m: Array) -> None:  # noqa: B027
        """Refuse responses outside the support.

        Raises
        ------
        DataError
            Naming how many and the first row.
        """

    def refuse(self, bad: NDArray[np.bool_], what: str) -> None:
        """DataError where some rows are bad, with their number and the first one."""
        if bad.any():
            raise DataError(
                f"{what}: {int(bad.sum())} of {len(bad)} rows are not, the first is row {int(bad.argmax())}"
            )

    def initial_mean(self, y: Array, m: Array) -> Array:
        """Means to start from, inside the support."""
        return y

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> float:
        """A moment estimate of rho from fitted means; 0 where there is no extra parameter."""
        return 0.0

    # ------------------------------------------------------------------ the extra parameter

    def natural(self, rho: float) -> float:
        """The extra parameter as users know it."""
        return float(np.exp(rho))

    def at_limit(self, rho: float) -> bool:
        """Whether rho has all but reached a limit of the family where the extra parameter does nothing any more."""
        return False

    def natural_slope(self, rho: float) -> float:
        """D natural / d rho."""
        return float(np.exp(rho))

    @property
    def logs(self) -> tuple[bool, ...]:
        """Which of the estimated extra parameters are logarithms of what users know."""
        return (True,) * self.n_extra

    def naturals(self, rho: float) -> Array:
        """The extra parameters as users know them, in the order of `names`."""
        return np.array([self.natural(rho) for _ in self.names])

    def natural_slopes(self, rho: float) -> Array:
        """D naturals / d rho, each in its own."""
        return np.array([self.natural_slope(rho) for _ in self.names])

    def natural_jacobian(self, rho: float) -> Array:
        """All their derivatives (n_extra, n_extra)."""
        return np.diag(self.natural_slopes(rho)[: self.n_extra])

    def scale(self, rho: float) -> float:
        """Dispersion phi: the extra parameter of gaussian, gamma and inverse gaussian families, else one."""
        return 1.0
