"""Generalised mixed models from arrays: families, links, `Model`, `fit_many`, the marginal deviance as a function.

    g(E y) = X beta + Z b + offset,   b ~ N(0, I x Sigma),   y of an exponential family or of one with a shape

The criterion is minus twice the marginal log-likelihood by Laplace's approximation or adaptive quadrature, minimised
over (theta, beta, rho) together with its exact gradient.

    design -> start -> first_look (beta with the modes) -> laplace or quadrature -> search -> fitted
"""

from fastlmm_core.core.glmm.fitted import GlmmFit
from fastlmm_core.core.glmm.model import GlmmObjective, ManyGlmmFits, Model, fit, fit_many, objective
from fastlmm_core.families import (
    Beta,
    Binomial,
    Family,
    Gamma,
    Gaussian,
    Hurdle,
    InverseGaussian,
    Link,
    NegativeBinomial,
    NegativeBinomial1,
    Ordinal,
    Poisson,
    TruncatedNegativeBinomial,
    TruncatedNegativeBinomial1,
    TruncatedPoisson,
    ZeroInflated,
    as_family,
)

__all__ = [
    "Beta",
    "Binomial",
    "Family",
    "Gamma",
    "Gaussian",
    "GlmmFit",
    "GlmmObjective",
    "Hurdle",
    "InverseGaussian",
    "Link",
    "ManyGlmmFits",
    "Model",
    "NegativeBinomial",
    "NegativeBinomial1",
    "Ordinal",
    "Poisson",
    "TruncatedNegativeBinomial",
    "TruncatedNegativeBinomial1",
    "TruncatedPoisson",
    "ZeroInflated",
    "as_family",
    "fit",
    "fit_many",
    "objective",
]
