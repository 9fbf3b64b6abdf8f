"""Residual covariance: structures within a subject, and models fitted from the patterns of their units."""

from fastlmm_core.core.residuals.crossed import CrossedFit, CrossedModel
from fastlmm_core.core.residuals.fit import PatternFit, PatternModel
from fastlmm_core.core.residuals.residual import KINDS, Residual

__all__ = ["KINDS", "CrossedFit", "CrossedModel", "PatternFit", "PatternModel", "Residual"]
