"""What `fit_many` gives: estimates of many responses with one design, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.many.information import ManyInformation
from fastlmm_core.errors import ConvergenceWarning, warn

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ManyFits"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ManyFits:
    """Estimates of k responses with one design, in the user's units.

    Attributes
    ----------
    theta : (k, n_theta)
    beta, se : (k, p)
        Fixed effects and their standard errors; NaN in columns set aside, errors also where they are not determined.
    sigma, criterion : (k,)
    converged : (k,) bool
    n_evaluations : (k,) int32
    is_singular : (k,) bool
        A variance of zero or a correlation of one.
    information : ManyInformation or None
        Covariances of beta and what Satterthwaite's degrees of freedom need, where asked for.

    A response that cannot be fitted has NaN and False.
    """

    theta: Array
    beta: Array
    se: Array
    sigma: Array
    criterion: Array
    converged: NDArray[np.bool_]
    n_evaluations: NDArray[np.int32]
    is_singular: NDArray[np.bool_]
    information: ManyInformation | None = None

    @classmethod
    def unfitted(cls, k: int, n_theta: int, p: int, information: ManyInformation | None = None) -> ManyFits:
        """Room for k fits: NaN, not converged."""
        theta, beta, se = (np.full((k, columns), np.nan) for columns in (n_theta, p, p))
        sigma, criterion = np.full((2, k), np.nan)
        converged, singular = np.zeros((2, k), bool)
        return cls(theta, beta, se, sigma, criterion, converged, np.zeros(k, np.int32), singular, information)

    def warn_of_unfitted(self) -> None:
        """One `ConvergenceWarning` with the number of responses that could not be fitted."""
        bad = np.flatnonzero(np.isnan(self.sigma))
        if len(bad):
            warn(
                f"{len(bad)} of {len(self)} responses could not be fitted, the first of them row {bad[0]} of Y: "
                "constant, reproduced by the fixed effects, or beyond what can be computed. Their estimates are NaN",
                ConvergenceWarning,
            )

    def some(self, which: NDArray[np.int64]) -> ManyFits:
        """Some of the fits."""
        arrays = {f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "information"}
        return ManyFits(**arrays, information=None if self.information is None else self.information.some(which))

    def __len__(self) -> int:
        return len(self.sigma)

    def to_frame(self) -> pd.DataFrame:
        """One row a response: theta_0, ..., beta_0, ..., se_0, ..., sigma, criterion, converged, n_evaluations."""
        import pandas as pd

        columns = {}
        for name in ("theta", "beta", "se"):
            values = getattr(self, name)
            columns.update({f"{name}_{j}": values[:, j] for j in range(values.shape[1])})
        for name in ("sigma", "criterion", "converged", "n_evaluations"):
            columns[name] = getattr(self, name)
        return pd.DataFrame(columns)
