"""From a formula and a table to a fitted model: `lmer`, `glmer` and the objects that they return."""

from __future__ import annotations

from fastlmm_core.fitting.options import FitOptions
from fastlmm_core.fitting.var_corr import TermCov, VarCorr
from fastlmm_core.results.result import LmerResult
from fastlmm_core.results.summary import Summary

__all__ = ["FitOptions", "LmerResult", "Summary", "TermCov", "VarCorr"]
