"""A fitted model for maketables, by the attributes of its plug-in format.

`ETable([fit])` takes a result for one of statsmodels', whose names it has, and shows coefficients, rows, an empty R²;
wrapped, it has its groups, residual standard deviation, criteria, degrees of freedom and intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.results.result import LmerResult

__all__ = ["WrappedModel", "wrap"]

_STATISTICS = {
    "N": "nobs",
    "ll": "llf",
    "aic": "aic",
    "bic": "bic",
    "df_model": "df_model",
    "df_resid": "df_resid",
    "sigma": "sigma",
    "criterion": "criterion",
}
"""maketables' keys, and attributes of a result."""


@dataclass(frozen=True, eq=False)
class WrappedModel:
    """A result under the names of maketables' plug-in format, and no others; made by `wrap`."""

    result: LmerResult
    ddf: str

    @property
    def __maketables_coef_table__(self) -> pd.DataFrame:
        table = self.result.coef_table(self.ddf)
        columns = {"b": table["estimate"], "se": table["std_error"], "t": table["t"], "p": table["p"]}
        for level in (90, 95, 99):
            limits = self.result.conf_int(parm="beta_", level=level / 100, ddf=self.ddf)  # type: ignore[arg-type]
            columns |= {f"ci{level}l": limits["lower"], f"ci{level}u": limits["upper"]}
        return table[["df"]].assign(**columns).rename_axis("Coefficient")

    def __maketables_stat__(self, key: str) -> Any:
        if key == "se_type":
            return "model"
        if key.startswith("groups:"):
            return self.result.n_groups.get(key.removeprefix("groups:"))
        return getattr(self.result, _STATISTICS[key]) if key in _STATISTICS else None

    @property
    def __maketables_depvar__(self) -> str:
        return self.result.design.formula.response

    @property
    def __maketables_vcov_info__(self) -> dict[str, Any]:
        return {"vcov_type": "model", "clustervar": None}

    @property
    def __maketables_stat_labels__(self) -> dict[str, str]:
        groups = {f"groups:{name}": f"Groups: {name}" for name in self.result.n_groups}
        return {"sigma": "Residual SD", "criterion": "REML criterion" if self.result.reml else "Deviance", **groups}

    @property
    def __maketables_default_stat_keys__(self) -> list[str]:
        return ["N", *(f"groups:{name}" for name in self.result.n_groups), "sigma", "ll", "aic"]


def wrap(result: LmerResult, ddf: str = "satterthwaite") -> WrappedModel:
    """A result for maketables.

    Parameters
    ----------
    result : LmerResult
    ddf : str
        Degrees of freedom of its p-values and intervals, as in `LmerResult.coef_table`.

    Returns
    -------
    WrappedModel
        For `maketables.ETable`; ``coef_fmt`` knows b, se, t, p, df, and ci90l, ci90u, ci95l, ... of intervals.

    Examples
    --------
    >>> from maketables import ETable
    >>> from fastlmm_core import lmer, load_dataset
    >>> from fastlmm_core.adapters.maketables import wrap
    >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    >>> "Residual SD" in ETable([wrap(fit)]).make(type="tex")
    True
    """
    return WrappedModel(result, ddf)
