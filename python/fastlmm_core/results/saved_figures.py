"""What a fit without its rows still answers: its figures under their names, tables, random effects, new rows.

Whatever needs the rows of the fit says so in one sentence.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import pandas as pd

from fastlmm_core.core import Control, FitLog
from fastlmm_core.core.estimability import NullSpace
from fastlmm_core.core.glmm import GlmmFit
from fastlmm_core.core.iterative import MonteCarlo
from fastlmm_core.core.saved import saved_state
from fastlmm_core.errors import ModelError, NotSavedError
from fastlmm_core.fitting import predict, ranef, var_corr
from fastlmm_core.fitting.coefficients import cov_params
from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.spelling import METHOD_ARGUMENTS, answered
from fastlmm_core.inference.ddf import FTest, method_name
from fastlmm_core.inference.information import VarianceInformation
from fastlmm_core.inference.table import Table
from fastlmm_core.results.export import to_dict
from fastlmm_core.results.glmer_result import GlmerResult
from fastlmm_core.results.result import LmerResult
from fastlmm_core.results.structured import StructuredResult
from fastlmm_core.results.summary import Summary
from fastlmm_core.results.summary import summary as summary_page

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.families import Family
    from fastlmm_core.fitting.var_corr import VarCorr
    from fastlmm_core.formula import Design
    from fastlmm_core.inference.coef_table import CoefArrays
    from fastlmm_core.inference.generalised.predict import Kind

__all__ = [
    "SavedCore",
    "SavedGlmCore",
    "SavedGlmerResult",
    "SavedResult",
    "SavedStructuredResult",
    "without_rows",
]

QUANTILES = ("Min", "1Q", "Median", "3Q", "Max")


def without_rows(design: Design) -> Design:
    """The coding that a design learnt, and none of its rows."""
    none, nobody, within = np.empty(0), np.empty(0, np.int64), design.residual
    if within is not None:
        columns = None if within.columns is None else within.columns[:0]
        group = None if within.group is None else nobody
        within = replace(within, subject=nobody, positions=nobody, group=group, columns=columns)
    return replace(
        design,
        y=none,
        X=np.empty((0, design.X.shape[1])),
        random=tuple(replace(t, codes=np.empty(0, np.int32), z=None, relationship=None) for t in design.random),
        weights=None,
        offset=None,
        row_index=nobody,
        index=None,
        table_index=None,
        residual=within,
        sparse=tuple(
            replace(s, codes=np.empty(0, np.int32), z=None if s.z is None else s.z[:0]) for s in design.sparse
        ),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class WithoutRows:
    """The figures of any core's fit, under its names, without the arrays of the rows."""

    theta: NDArray[np.float64]
    beta: NDArray[np.float64]
    cov_beta: NDArray[np.float64]
    criterion: float
    n: int
    rank: int
    is_singular: bool
    b: tuple[NDArray[np.float64], ...]
    L: tuple[NDArray[np.float64], ...]
    log: FitLog
    converged: bool
    message: str
    conditional: tuple[NDArray[np.float64], ...]
    null_space: NullSpace | None
    monte_carlo: MonteCarlo | None = None

    @property
    def unidentified(self) -> None:
        """None: fits with variances that the data do not identify are saved with their rows."""
        return

    @property
    def known_cov(self) -> NDArray[np.float64]:
        """As of the fit."""
        return self.cov_beta

    def cond_var(self) -> tuple[NDArray[np.float64], ...]:
        """As of the fit."""
        return self.conditional

    def estimable(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """As of the fit."""
        if self.null_space is None:
            return np.ones(len(np.atleast_2d(rows)), dtype=bool)
        return self.null_space.estimable(rows)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotSavedError


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedCore(WithoutRows):
    """The figures of a linear core's fit."""

    sigma: float
    reml: bool
    n_parameters: int
    information: VarianceInformation


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedGlmCore(WithoutRows):
    """The figures of a generalised core's fit."""

    rho: Any
    cov: NDArray[np.float64]
    n_agq: int
    family: Family
    control: Control = field(default_factory=Control)

    sigma = 1.0
    reml = False
    zero_part = None  # a zero part with random effects is saved with its rows

    @property
    def family_params(self) -> dict[str, float]:
        """As of the fit."""
        return cast("Any", GlmmFit).family_params.fget(self)

    @property
    def family_params_se(self) -> dict[str, float]:
        """As of the fit."""
        return cast("Any", GlmmFit).family_params_se.fget(self)


def narrowed(function: FunctionType, whole: Callable[..., Any]) -> Callable[..., Any]:
    """A method that has fewer arguments than the whole fit's: whoever asks by one of the others is told why."""
    own = inspect.signature(function).parameters
    absent = {n: p.default for n, p in inspect.signature(whole).parameters.items() if n not in own}
    answer = answered(METHOD_ARGUMENTS)(function)

    def asked(self: Any, *args: Any, **options: Any) -> Any:
        for name in absent.keys() & options.keys():
            value = options.pop(name)
            default = absent[name]
            if not (value is default or (type(value) is type(default) and value == default)):
                raise NotSavedError(f"{function.__name__}({name}=...)")
        return answer(self, *args, **options)

    return functools.update_wrapper(asked, function)


class SavedFigures(FittedModel):
    """What all kinds of fits answer without their rows."""

    whole: type[FittedModel]
    """What the fit was before."""

    def __init_subclass__(cls) -> None:
        for name in dir(cls):
            function, theirs = inspect.getattr_static(cls, name), getattr(cls.whole, name, None)
            if not name.startswith("_") and isinstance(function, FunctionType) and callable(theirs):
                setattr(cls, name, narrowed(function, theirs))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(self.whole, name):
            raise NotSavedError(name)
        return super().__getattr__(name)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return saved_state(dict(self.__dict__))  # with what is kept: there is no other source of it

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values of `coef_table`."""
        return self.coef_table()["p"].rename(None)

    def var_corr(self) -> VarCorr:
        """Standard deviations and correlations of the random effects."""
        return var_corr.var_corr(self.design, self.core)

    def ranef(self, *, condsd: bool = True) -> pd.DataFrame:
        """Conditional modes in a long table, as `LmerResult.ranef`."""
        return ranef.ranef(self.design, self.core, condsd=condsd)

    @property
    def random_effects(self) -> dict[str, pd.DataFrame]:
        """Conditional modes, one wide table a grouping factor."""
        return ranef.random_effects(self.design, self.core)

    def coef(self) -> dict[str, pd.DataFrame]:
        """Coefficients of each level, as `LmerResult.coef`."""
        return ranef.coef(self.design, self.core)

    @property
    def aicc(self) -> float:
        """AIC with its small-sample term (Hurvich & Tsai 1989)."""
        from fastlmm_core.inference.comparison import aicc

        return aicc(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the same again."""
        from fastlmm_core.results.saved import write

        write(path, {"formula": self.formula, **self.kept["saved"]})

    def _quantiles(self) -> pd.Series:
        return pd.Series(self.kept["quantiles"], index=list(QUANTILES))

    def _repr_html_(self) -> str:
        return str(self.summary()._repr_html_())


class SavedResult(SavedFigures):
    """A fit as it was saved without its data: its figures, tables, random effects, and predictions for new rows.

    What needs the rows of the fit (other tests, profiles, residuals, pictures) says so in one sentence.
    """

    whole = LmerResult

    def coef_table(self, ddf: str = "satterthwaite") -> Table:
        """As `LmerResult.coef_table`; Kenward and Roger's method needs the rows."""
        from fastlmm_core.inference.coef_table import coef_table

        return coef_table(self, ddf=self._method(ddf, "coef_table"))

    def coef_arrays(self, ddf: str = "satterthwaite") -> CoefArrays:
        """As `LmerResult.coef_arrays`."""
        from fastlmm_core.inference.coef_table import coef_arrays

        return coef_arrays(self, ddf=self._method(ddf, "coef_arrays"))

    def t_test(self, hypotheses: Any, *, ddf: str = "satterthwaite") -> Table:
        """As `LmerResult.t_test`."""
        from fastlmm_core.inference.hypotheses import t_test

        return t_test(self, hypotheses, ddf=self._method(ddf, "t_test"))

    def f_test(self, hypotheses: Any, *, ddf: str = "satterthwaite") -> FTest:
        """As `LmerResult.f_test`."""
        from fastlmm_core.inference.hypotheses import f_test

        return f_test(self, hypotheses, ddf=self._method(ddf, "f_test"))

    def conf_int(
        self,
        method: str = "wald",
        level: float = 0.95,
        parm: str | Iterable[str] | None = None,
        *,
        ddf: str = "satterthwaite",
    ) -> Table:
        """As `LmerResult.conf_int`, Wald intervals of the coefficients."""
        from fastlmm_core.inference.intervals import conf_int

        if method != "wald":
            raise NotSavedError(f"conf_int(method={method!r})")
        return conf_int(self, "wald", level, parm, ddf=self._method(ddf, "conf_int"))

    def _method(self, ddf: str, what: str) -> str:
        name = method_name(ddf)
        if name.startswith("kenward-roger"):
            raise NotSavedError(f"{what}(ddf={ddf!r})")
        return name

    def to_dict(self, *, ranef: bool = False) -> dict[str, Any]:
        """As `LmerResult.to_dict`."""
        return to_dict(cast("Any", self), ranef=ranef)

    def cov_params(self) -> pd.DataFrame:
        """Covariance of `params`."""
        return cov_params(self.design, self.core)

    def summary(self, ddf: str = "satterthwaite") -> Summary:
        """As `LmerResult.summary`."""
        self._method(ddf, "summary")
        return summary_page(cast("Any", self), ddf, self.kept["residual"], self._quantiles())

    def predict(self, newdata: Any = None, *, re_form: str = "all", allow_new_levels: bool = False) -> pd.Series:
        """Predictions for new rows, as `LmerResult.predict`; their intervals need the data."""
        if newdata is None:
            raise NotSavedError("predict()")
        if self.design.sparse:
            raise ModelError("predict of new data is not available for a model with sparse() effects")
        return predict.predict(self.design, self.core, newdata, re_form=re_form, allow_new_levels=allow_new_levels)


class SavedStructuredResult(SavedResult):
    """A `SavedResult` of a fit with a covariance structure."""

    whole = StructuredResult

    @property
    def theta(self) -> pd.Series:
        """As `StructuredResult.theta`."""
        return pd.Series(self.core.theta, index=self.kept["theta_labels"], dtype=float, copy=True)

    @property
    def fit_log(self) -> pd.DataFrame:
        """As `StructuredResult.fit_log`."""
        log, labels = self.core.log, self.kept["theta_labels"]
        columns = {"criterion": log.criterion, "gradient_norm": log.gradient_norm, "radius": log.radius}
        figures = pd.DataFrame(columns, index=pd.RangeIndex(1, len(log) + 1, name="evaluation"))
        return figures.join(pd.DataFrame(log.theta, columns=labels, index=figures.index))

    @property
    def n_groups(self) -> dict[str, int]:
        """As `StructuredResult.n_groups`."""
        return dict(self.kept["n_groups"])

    def covariance_parameters(self, level: float = 0.95) -> pd.DataFrame:
        """As `StructuredResult.covariance_parameters`, at the level of 0.95."""
        if level != 0.95:
            raise NotSavedError(f"covariance_parameters(level={level})")
        found = self.kept["covariance_parameters"]
        return pd.DataFrame(
            dict(zip(found["columns"], found["values"], strict=True)), index=pd.Index(found["index"], name="parameter")
        )

    def residual_cov(self) -> pd.DataFrame:
        """As `StructuredResult.residual_cov`, of all visits."""
        if self.kept["residual_cov"] is None:
            raise ModelError("this is for models with a residual structure or of independent subjects")
        names, values = self.kept["residual_cov"]
        return pd.DataFrame(values, index=list(names), columns=list(names))

    def residual_corr(self) -> pd.DataFrame:
        """Correlations of `residual_cov`."""
        cov = self.residual_cov()
        sd = np.sqrt(np.diag(cov))
        return cov / sd[:, None] / sd[None, :]


class SavedGlmerResult(SavedFigures, GeneralisedModel):
    """A generalised fit as it was saved without its data."""

    whole = GlmerResult
    core: SavedGlmCore  # type: ignore[assignment]

    def coef_table(self, *, exp: bool = False, level: float = 0.95) -> pd.DataFrame:
        """As `GlmerResult.coef_table`."""
        from fastlmm_core.inference.generalised.tables import coef_table

        return coef_table(cast("Any", self), exp=exp, level=level)

    def cov_params(self, *, full: bool = False) -> pd.DataFrame:
        """As `GlmerResult.cov_params`."""
        return GlmerResult.cov_params(cast("Any", self), full=full)

    def t_test(self, hypotheses: Any) -> Table:
        """As `GlmerResult.t_test`."""
        from fastlmm_core.inference.hypotheses import t_test

        return t_test(self, hypotheses, ddf="normal")

    def summary(self) -> Summary:
        """As `GlmerResult.summary`."""
        from fastlmm_core.results.glmer_summary import summary

        return summary(cast("Any", self), self._quantiles())

    def predict(
        self,
        newdata: Any = None,
        *,
        kind: Kind = "response",
        re_form: str = "all",
        allow_new_levels: bool = False,
        interval: str | None = None,
        level: float = 0.95,
    ) -> pd.Series | pd.DataFrame:
        """Predictions for new rows, as `GlmerResult.predict`; intervals that hold random effects need the data."""
        from fastlmm_core.inference.generalised.predict import predict

        if newdata is None:
            raise NotSavedError("predict()")
        if interval is not None and kind not in ("population", "marginal", "zprob") and re_form != "none":
            raise NotSavedError("predict(interval=...)")
        return predict(
            cast("Any", self),
            newdata,
            kind=kind,
            re_form=re_form,
            allow_new_levels=allow_new_levels,
            interval=interval,
            level=level,
        )
