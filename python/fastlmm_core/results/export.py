"""A fit as plain Python values that JSON can hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastlmm_core.results.glmer_result import GlmerResult
    from fastlmm_core.results.result import LmerResult

__all__ = ["glmer_to_dict", "to_dict"]


def to_dict(result: LmerResult, *, ranef: bool = False) -> dict[str, Any]:
    """The estimates and figures of a fit; NaN becomes None."""
    return _exported(result, {"reml": result.reml, "sigma": result.sigma}, ranef)


def glmer_to_dict(result: GlmerResult, *, ranef: bool = False) -> dict[str, Any]:
    """The estimates and figures of a generalised fit; NaN becomes None."""
    family = result.core.family
    own = {
        "family": family.name,
        "link": family.link.name,
        "n_agq": result.options.n_agq,
        "family_params": result.core.family_params,
        "deviance": result.deviance,
        "notes": list(result.notes),
    }
    return _exported(result, own, ranef)


def _exported(result: LmerResult | GlmerResult, own: dict[str, Any], ranef: bool) -> dict[str, Any]:
    out = {
        "formula": result.formula,
        "criterion": result.criterion,
        "llf": result.llf,
        "aic": result.aic,
        "bic": result.bic,
        "nobs": result.nobs,
        "n_missing": result.n_missing,
        "df_model": result.df_model,
        "df_resid": result.df_resid,
        "params": result.params.to_dict(),
        "bse": result.bse.to_dict(),
        "cov_params": result.cov_params().to_numpy().tolist(),
        "theta": result.theta.to_dict(),
        "var_corr": result.var_corr().to_frame().to_dict("records"),
        "n_groups": result.n_groups,
        "is_singular": result.is_singular,
        "converged": result.converged,
        "message": result.message,
        "n_evaluations": len(result.fit_log),
        **own,
    }
    if ranef:
        out["ranef"] = result.ranef().astype({"grpvar": object, "term": object, "grp": object}).to_dict("records")
    plain: dict[str, Any] = _plain(out)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
