"""Families of response distributions and their links: NumPy on top of compiled row loops."""

from __future__ import annotations

from fastlmm_core.errors import ModelError, no_such
from fastlmm_core.families.exponential import Binomial, Gamma, Gaussian, InverseGaussian, Poisson
from fastlmm_core.families.family import Family, Rows
from fastlmm_core.families.links import LINKS, Link
from fastlmm_core.families.ordinal import Ordinal
from fastlmm_core.families.overdispersed import Beta, NegativeBinomial, NegativeBinomial1
from fastlmm_core.families.truncated import TruncatedNegativeBinomial, TruncatedNegativeBinomial1, TruncatedPoisson
from fastlmm_core.families.two_part import Hurdle, TwoPart, ZeroInflated
from fastlmm_core.families.vector import VectorFamily

__all__ = [
    "FAMILIES",
    "LINKS",
    "Beta",
    "Binomial",
    "Family",
    "Gamma",
    "Gaussian",
    "Hurdle",
    "InverseGaussian",
    "Link",
    "NegativeBinomial",
    "NegativeBinomial1",
    "Ordinal",
    "Poisson",
    "Rows",
    "TruncatedNegativeBinomial",
    "TruncatedNegativeBinomial1",
    "TruncatedPoisson",
    "TwoPart",
    "VectorFamily",
    "ZeroInflated",
    "as_family",
]

FAMILIES: dict[str, type[Family]] = {
    f.name: f
    for f in (
        *(Binomial, Poisson, NegativeBinomial, NegativeBinomial1, Gamma, InverseGaussian, Gaussian, Beta),
        *(TruncatedPoisson, TruncatedNegativeBinomial, TruncatedNegativeBinomial1),
    )
}
"""By name, in the order of the kernels' codes."""


def as_family(family: str | Family, link: str | Link | None = None) -> Family:
    """A family by name or instance.

    Raises
    ------
    ModelError
        No such family; the family has no such link; a link beside an instance, which has one already.
    """
    if isinstance(family, Family):
        if link is not None and (link.name if isinstance(link, Link) else link) != family.link.name:
            raise ModelError(f"the family given has the {family.link.name} link: give either it or link=, not both")
        return family
    if family == Ordinal.name:
        raise ModelError("an ordinal family needs to know its categories: Ordinal(link, levels=...)")
    found = FAMILIES.get(family) if isinstance(family, str) else None
    if found is None:
        raise ModelError(no_such("family", family, [*FAMILIES, Ordinal.name]))
    return found(link)
