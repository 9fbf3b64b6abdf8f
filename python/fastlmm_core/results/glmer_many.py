"""`glmer_many()`: one formula, one design and one family, many responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.families import as_family
from fastlmm_core.fitting.generalised import check_identified
from fastlmm_core.fitting.many_generalised import ManyGeneralised, Shared, fit_each
from fastlmm_core.fitting.models import arrays_of
from fastlmm_core.fitting.spelling import answering, explained
from fastlmm_core.formula.evaluate import Context, caller_names
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.rowwise import numeric_argument
from fastlmm_core.inference.expand import as_pandas
from fastlmm_core.inference.multiplicity import stepwise
from fastlmm_core.inference.progress import counted
from fastlmm_core.results.many import OfMany, contrast_rows, design_of, given_weights, index_of, responses_of

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.families import Family, Link

__all__ = ["GlmerMany", "glmer_many"]

Array = NDArray[np.float64]


@answering
@dataclass(frozen=True, eq=False, repr=False)
class GlmerMany(OfMany):
    """Generalised fits of one formula to many responses.

    Attributes
    ----------
    design : Design
    fits : ManyGeneralised
        Arrays, a row a response.
    names : tuple of str
        Of the responses.
    contrasts : tuple of str
        What was tested, by name.
    family : Family
    """

    fits: ManyGeneralised
    family: Family

    @property
    def _what(self) -> str:
        return f"{self.family.name}({self.family.link.name}), {self.design.formula}"

    @property
    def bse(self) -> pd.DataFrame:
        """Standard errors of `params`."""
        return self._rows(self.fits.se, self.design.x_names)

    @property
    def family_params(self) -> pd.DataFrame:
        """The family's own parameter, a row a response; no column where it has none."""
        family = self.family
        values = [family.naturals(family.rho_of(r)) if len(r) else np.empty(0) for r in self.fits.rho]
        names = list(family.names) if family.n_extra else []
        return self._rows(np.array(values).reshape(len(self), len(names)), names)

    def table(self, contrast: str | int = 0, *, exp: bool = False) -> pd.DataFrame:
        """Wald's tests of one contrast in every response.

        Parameters
        ----------
        contrast : str or int
            By name or position.
        exp : bool
            Ratios in place of estimates, their standard errors by the delta method; z and p stay.

        Returns
        -------
        DataFrame
            A row a response: estimate, std_error, z, p, p_adjusted (Benjamini and Hochberg 1995), n, is_singular,
            converged, message.
        """
        k, f = self._place(contrast), self.fits
        ratio = np.exp(f.estimate[:, k]) if exp else 1.0
        return pd.DataFrame(
            {
                "estimate": ratio if exp else f.estimate[:, k],
                "std_error": ratio * f.std_error[:, k],
                "z": f.z[:, k],
                "p": f.p[:, k],
                "p_adjusted": stepwise(f.p[:, k], "BH"),
                "n": f.n,
                "is_singular": f.is_singular,
                "converged": f.converged,
                "message": f.message,
            },
            index=pd.Index(list(self.names), name="response"),
        )


@explained
def glmer_many(
    formula: str,
    data: Any,
    responses: ArrayLike | Sequence[str] | pd.DataFrame,
    family: str | Family,
    *,
    link: str | Link | None = None,
    trials: str | ArrayLike | None = None,
    weights: str | ArrayLike | None = None,
    freq_weights: str | ArrayLike | None = None,
    offset: str | ArrayLike | None = None,
    exposure: str | ArrayLike | None = None,
    n_agq: int = 1,
    contrasts: Any = None,
    control: Control | None = None,
    progress: bool = False,
    env: Mapping[str, Any] | None = None,
) -> GlmerMany:
    """Fit one generalised formula to many responses: genes' counts, items' answers.

    The design is read and planned once, for each pattern of missing values; every fit is the one that `glmer` makes.

    Parameters
    ----------
    formula : str
        As for `glmer`; what stands left of "~" is not looked at: ``"~ x + (1 | g)"`` will do.
    data : table
        The design, a row an observation.
    responses : list of str, DataFrame (n, k) or array (k, n)
        Columns of the data; a frame with a column a response; or an array with a row a response. Numbers: successes of
        a binomial family. NaN is a missing value of that response alone.
    family, link, n_agq, control, env
        As for `glmer`; families with one parameter of their own at most, without ``zero=``.
    trials : str, (n,) or (k, n), optional
        Trials of a binomial family, for all responses or for each; a frame (n, k) has a column a response.
    weights, freq_weights, offset : str, (n,) or (k, n), optional
        As for `glmer`.
    exposure : str, (n,) or (k, n), optional
        Library sizes or times: their logarithms are added to the offset.
    contrasts : str, list, mapping or array (c, p), optional
        Hypotheses as for `t_test`, or names to such; every coefficient by default.
    progress : bool
        Show a bar.

    Returns
    -------
    GlmerMany
        A response that cannot be fitted is NaN, and `message` says why.

    Raises
    ------
    DataError
        The design has missing values, or shapes do not fit.
    ModelError
        A family with several parameters; arguments that do not belong together.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from fastlmm_core import glmer_many
    >>> rng = np.random.default_rng(0)
    >>> samples = pd.DataFrame({"person": np.repeat(np.arange(12), 4), "dose": np.tile([0, 1, 0, 1], 12)})
    >>> mean = np.exp(1.5 + 0.4 * rng.normal(size=(20, 12))[:, samples.person])
    >>> mean[4] *= np.exp(1.2 * samples.dose)
    >>> found = glmer_many("~ dose + (1 | person)", samples, rng.poisson(mean), "poisson", contrasts="dose")
    >>> found.table()["p"].idxmin()
    '4'
    """
    env = caller_names(3) if env is None else env
    chosen = _family(family, link, weights, trials)
    frame, index = as_pandas(data), index_of(data)
    Y, names = responses_of(responses, frame, index)
    if np.isinf(Y).any():
        raise DataError(f"response {names[int(np.isinf(Y).any(axis=1).argmax())]} has infinite values")
    design = design_of(formula, frame, env, observation_level=True)
    check_identified(design, chosen, single=chosen.name == "binomial" and trials is None)
    read = _Reader(frame, index, env, Y.shape)
    given = {"trials": trials, "weights": weights, "freq_weights": freq_weights}
    rows = {name: read(values, name) for name, values in given.items() if values is not None}
    for name in {"weights", "freq_weights"} & set(rows):  # as `glmer` leaves such rows out
        Y = np.where(rows[name] == 0.0, np.nan, Y)
    known = [part for part in (design.offset, None if offset is None else read(offset, "offset")) if part is not None]
    if exposure is not None:
        known.append(_log_exposure(read(exposure, "exposure"), chosen))
    if known:
        rows["offset"] = np.asarray(sum(known[1:], known[0]))
    labels, tested = contrast_rows(contrasts, list(design.x_names))
    groups = tuple(term.group for term in design.random)
    shared = Shared(arrays_of(design).with_weights(None), chosen, design.x_names, groups, n_agq, control)
    with counted(len(Y), progress, "fits", "response") as shown:
        fits = fit_each(Y, shared, rows, tested, shown.update)
    return GlmerMany(design, fits, tuple(names), tuple(labels), chosen)


def _family(family: str | Family, link: str | Link | None, weights: Any, trials: Any) -> Family:
    """The family asked for; ModelError where it has several parameters, or rows' arguments are not its."""
    if family == "ordinal":
        raise ModelError("glmer_many() has no ordinal family: fit such responses one by one with glmer()")
    chosen = as_family(family, link)
    if chosen.vector:
        raise ModelError(f"glmer_many() has no {chosen.name} family: fit such responses one by one with glmer()")
    if chosen.name == "binomial" and weights is not None:
        raise ModelError("binomial responses are successes here: say trials= in place of weights=")
    if chosen.name != "binomial" and trials is not None:
        raise ModelError(f"trials belong to the binomial family, not to {chosen.name}")
    return chosen


class _Reader:
    """Numbers a row from a text over the columns, (n,) or (k, n) values, or a frame (n, k)."""

    def __init__(
        self, frame: pd.DataFrame, index: pd.Index | None, env: Mapping[str, Any], shape: tuple[int, ...]
    ) -> None:
        self.table, self.index, self.context, self.shape = Table(frame), index, Context(env), shape

    def __call__(self, values: Any, what: str) -> Array:
        if isinstance(values, pd.DataFrame) and len(values) == self.shape[1]:
            values = given_weights(values, self.index, self.shape[1], what)
        if not isinstance(values, str) and np.ndim(values) == 2:
            out = np.asarray(values, dtype=np.float64)
            if out.shape != self.shape:
                raise DataError(f"{what} has shape {out.shape}, but the responses have shape {self.shape}")
        else:
            out = numeric_argument(values, what, self.table, self.context)
        if not np.isfinite(out).all():
            raise DataError(f"{what} has {int((~np.isfinite(out)).sum())} values that are missing or infinite")
        return out


def _log_exposure(values: Array, family: Family) -> Array:
    if family.link.name != "log":
        raise ModelError(f"exposure= multiplies means, which needs the log link, not {family.link.name}: use offset=")
    if (values <= 0.0).any():
        raise DataError(f"exposure must be positive, which {int((values <= 0.0).sum())} values are not")
    return np.log(values)
