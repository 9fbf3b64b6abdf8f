"""A fitted model for marginaleffects: predictions, comparisons and slopes with this package's covariance.

Predictions are of the population (fixed effects and offset) or with the levels' conditional modes added; either way the
uncertainty is that of the fixed effects, as marginaleffects takes it from one covariance matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.errors import DataError, DependencyError, ModelError
from fastlmm_core.fitting.predict import included_columns, linear_predictor, target_rows
from fastlmm_core.formula.quoting import unquote_name
from fastlmm_core.inference.ddf import method_name
from fastlmm_core.results.glmer_result import GlmerResult
from fastlmm_core.results.result import LmerResult

try:
    import polars as pl
    from marginaleffects.classes import MarginaleffectsResult, ModelAbstract, ModelVault
except ImportError as error:
    raise DependencyError('wrap() needs marginaleffects 0.6 or newer: pip install "marginaleffects>=0.6"') from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WrappedModel", "with_ddf", "wrap"]


class WrappedModel(ModelAbstract):  # type: ignore[misc]  # marginaleffects has no types
    """A result as marginaleffects takes models; made by `wrap`."""

    def __init__(
        self, result: LmerResult | GlmerResult, vault: ModelVault, re_form: str, df: float, kind: str = "link"
    ) -> None:
        self.re_form, self.df_resid, self.kind = re_form, df, kind
        self.estimated = ~np.isnan(result.core.beta)
        super().__init__(result, vault)

    def validation(self) -> None:
        """What the base class learns from its tables, which it reads in a way that polars 2 refuses (floats)."""
        self.coef, self.formula, self.response_name = self.vault.coef, self.vault.formula, self.vault.variable_names[0]
        frame = self.vault.modeldata
        self.vault.variables_type = {name: _kind(frame[name]) for name in self.vault.variable_names}

    def get_vcov(self, vcov: Any = True) -> NDArray[np.float64] | None:
        """The model's covariance of the estimated coefficients, or a cluster-robust one: ``vcov="CR2"``."""
        if vcov is False or vcov is None:
            return None
        kind = "model" if vcov is True else str(vcov)
        if isinstance(self.model, GlmerResult):
            if kind != "model":
                raise ModelError(f"a generalised fit has no covariance {kind!r}: vcov=True is the Hessian's")
            cov = self.model.cov_params().to_numpy()
        else:
            cov = self.model.cov_params(cov_type=kind).to_numpy()
        return np.ascontiguousarray(cov[np.ix_(self.estimated, self.estimated)])

    def get_exog(self, newdata: pl.DataFrame) -> NDArray[np.float64]:
        """Columns of the estimated coefficients, and last what does not depend on them: offset and random effects.

        NaN in that last one where the data do not determine the prediction or something is missing.
        """
        design, core = self.model.design, self.model.core
        masks = included_columns(design, self.re_form)
        rows = target_rows(design, _plain(newdata), masks)
        assert rows.X is not None  # `fixed` is asked for by default
        X = rows.X[:, self.estimated]
        rest = linear_predictor(rows, core, masks) - X @ core.beta[self.estimated]
        full: NDArray[np.float64] = rows.full(np.column_stack([X, rest]))
        return full

    def get_predict(self, params: NDArray[np.float64], newdata: Any) -> pl.DataFrame:
        """Predictions at other coefficients, a row a row."""
        exog = self.get_exog(newdata) if isinstance(newdata, pl.DataFrame) else np.asarray(newdata)
        estimate = exog[:, :-1] @ np.asarray(params) + exog[:, -1]
        if self.kind == "response":
            family = self.model.core.family
            estimate = family.response_mean(family.link.inverse(estimate), self.model.core.rho)
        rowid = pl.Series("rowid", np.arange(len(estimate)), dtype=pl.Int32)
        return pl.DataFrame({"rowid": rowid, "estimate": estimate})


def wrap(
    result: LmerResult | GlmerResult,
    data: Any = None,
    *,
    re_form: str = "none",
    ddf: str | float = "normal",
    kind: str = "response",
) -> WrappedModel:
    """A result for the functions of marginaleffects.

    Parameters
    ----------
    result : LmerResult or GlmerResult
    data : table, optional
        That of the fit; without it the one that the fit remembers, while somebody holds it.
    re_form : str
        Random effects in the predictions, as in `LmerResult.predict`: "none", "all", or terms.
    ddf : {"normal", "residual"} or float
        Degrees of freedom behind p-values and intervals, one number for all of an answer; `with_ddf` gives each row its
        own.
    kind : {"response", "link"}
        Of a generalised fit: means (of a group whose random effects are those of ``re_form``), or linear predictors.

    Returns
    -------
    WrappedModel

    Raises
    ------
    DataError
        The table is not that of the fit, or not kept.
    ModelError
        No such degrees of freedom or kind; no result of `lmer` or `glmer` with its rows.

    Notes
    -----
    Standard errors of slopes are differences of differences, whose rounding is in the third digit at the step that
    marginaleffects takes by itself; with ``eps_vcov=0.01`` they have six.

    Examples
    --------
    >>> from marginaleffects import avg_slopes
    >>> from fastlmm_core import lmer, load_dataset
    >>> from fastlmm_core.adapters.marginaleffects import wrap
    >>> data = load_dataset("sleepstudy")
    >>> fit = lmer("Reaction ~ Days + (Days | Subject)", data)
    >>> answer = avg_slopes(wrap(fit), variables="Days", eps_vcov=0.01)
    >>> round(answer["estimate"][0], 3), round(answer["std_error"][0], 3)
    (10.467, 1.546)
    """
    if not isinstance(result, (LmerResult, GlmerResult)):
        raise ModelError(
            f"wrap takes a result of lmer() or glmer(), or one loaded with its data, not a {type(result).__name__}"
        )
    if result.design.sparse:
        raise ModelError("marginaleffects beside sparse() effects is not available: it predicts new rows")
    if kind not in ("response", "link"):
        raise ModelError(f'kind must be "response" or "link", not {kind!r}')
    if isinstance(ddf, str):
        if method_name(ddf) not in ("normal", "residual"):
            raise ModelError(
                f'ddf must be "normal", "residual" or a number, not {ddf!r}: with_ddf(answer, model) has it'
            )
        df = np.inf if method_name(ddf) == "normal" else float(result.nobs - result.core.rank)
    else:
        df = float(ddf)
    names, frame = _model_data(result, result.kept_data() if data is None else data)
    estimated = ~np.isnan(result.core.beta)
    vault = ModelVault(
        coef=np.asarray(result.core.beta[estimated]),
        coefnames=np.array(result.design.x_names)[estimated],
        formula=f"{_quoted(names[0])} ~ {' + '.join(map(_quoted, names[1:])) or '1'}",
        modeldata=frame,
        package="fastlmm_core",
        variable_names=names,
    )
    return WrappedModel(result, vault, re_form, df, kind if isinstance(result, GlmerResult) else "link")


def with_ddf(answer: MarginaleffectsResult, model: WrappedModel, ddf: str = "satterthwaite") -> pl.DataFrame:
    """An answer of marginaleffects with degrees of freedom of each row, from its derivatives by the coefficients.

    Parameters
    ----------
    answer : MarginaleffectsResult
        Of `predictions`, `comparisons`, `slopes` or one of their averages, on the scale of the response.
    model : WrappedModel
        What it was asked of.
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        As in `LmerResult.coef_table`; "kenward-roger" adjusts the standard errors as well.

    Returns
    -------
    polars.DataFrame
        The answer with std_error, df, statistic, p_value, conf_low and conf_high of this method. For a function that is
        not linear in the coefficients it is the delta method's.

    Raises
    ------
    ModelError
        The answer has no derivatives (``vcov=False``), or is of another shape.
    """
    from scipy.special import stdtr, stdtrit

    jacobian, frame = answer.jacobian, answer.to_polars()
    if jacobian is None or len(jacobian) != len(frame):
        raise ModelError("the answer has no derivatives of its own: ask for it with vcov=True")
    L = np.zeros((len(jacobian), len(model.estimated)))
    L[:, model.estimated] = jacobian
    size = np.abs(L).max(axis=1, keepdims=True)
    tested = model.model.t_test(L / np.where(size > 0.0, size, 1.0), ddf=ddf)
    error, df = tested["std_error"].to_numpy() * size[:, 0], tested["df"].to_numpy()
    estimate = frame["estimate"].to_numpy()
    null = estimate - frame["statistic"].to_numpy() * frame["std_error"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = (estimate - np.where(np.abs(null) < 1e-9 * np.abs(estimate), 0.0, null)) / error
    half = stdtrit(np.minimum(df, 1e12), 0.5 + 0.5 * answer.conf_level) * error
    p = 2.0 * stdtr(np.minimum(df, 1e12), -np.abs(statistic))
    columns = {"std_error": error, "df": df, "statistic": statistic, "p_value": p, "s_value": -np.log2(p)}
    columns |= {"conf_low": estimate - half, "conf_high": estimate + half}
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def _model_data(result: LmerResult | GlmerResult, data: Any) -> tuple[list[str], pl.DataFrame]:
    """Response and predictors by name, and the rows of the fit as marginaleffects wants them: factors as enums."""
    import narwhals as nw

    design = result.design
    table = pd.DataFrame(data) if isinstance(data, dict) else nw.from_native(data, eager_only=True).to_pandas()
    if len(table) != design.n_total:
        raise DataError(f"data has {len(table)} rows, but the table of the fit had {design.n_total}")
    rows = table.iloc[design.row_index]
    info = design.grid_info.columns
    response = unquote_name(design.formula.response) or design.formula.response
    grouping = [name for term in design.formula.random for name in term.group if name in table]
    y = design.y
    if isinstance(result, GlmerResult) and result.core.family.name == "binomial" and design.weights is not None:
        y = y / design.weights  # proportions, as the means are
    columns: dict[str, Any] = {response: y}
    for name in dict.fromkeys([*info, *grouping, *table.columns]):
        if str(name) not in columns:
            columns[str(name)] = _polars_column(rows[name], info.get(str(name)))
    return [response, *(str(name) for name in info)], pl.DataFrame(columns)


def _polars_column(values: pd.Series, info: Any) -> pl.Series:
    numeric = pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_datetime64_any_dtype(values.dtype)
    if numeric:
        return pl.Series(values.to_numpy())
    if info is not None and info.kind == "factor":
        levels = [str(level) for level in info.levels]
    elif isinstance(values.dtype, pd.CategoricalDtype):
        levels = [str(level) for level in values.cat.categories]
    else:
        levels = sorted({str(v) for v in values.dropna()})
    return pl.Series([None if pd.isna(v) else str(v) for v in values], dtype=pl.Enum(levels))


def _plain(newdata: pl.DataFrame) -> pd.DataFrame:
    """The rows for which predictions are asked, enums as texts."""
    return pd.DataFrame({name: newdata[name].to_numpy() for name in newdata.columns})


def _kind(values: pl.Series) -> str:
    """What marginaleffects calls a column's type."""
    if values.dtype.is_numeric():
        if set(values.drop_nulls().unique().to_list()) <= {0, 1}:
            return "binary"
        return "integer" if values.dtype.is_integer() else "numeric"
    if values.dtype == pl.Boolean:
        return "boolean"
    return "character" if isinstance(values.dtype, pl.Enum) else "unknown"


def _quoted(name: str) -> str:
    return name if name.isidentifier() else f"`{name}`"
