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


ELSEWHERE = {
    **dict.fromkeys(("nbinom2", "nbinom", "negbin", "nb", "nb2", "negativebinomial2"), "negativebinomial"),
    **dict.fromkeys(("nbinom1", "nb1"), "negativebinomial1"),
    **dict.fromkeys(("bernoulli", "logistic"), "binomial"),
    **dict.fromkeys(("normal",), "gaussian"),
    **dict.fromkeys(("betafamily", "betar"), "beta"),
    **dict.fromkeys(("cumulative", "orderedlogistic", "ordered"), "ordinal"),
    **dict.fromkeys(("inversegaussian",), "inverse_gaussian"),
}
"""What other packages call these families, in small letters alone."""


def _shown(family: object) -> str:
    return family.__name__ if isinstance(family, type) else repr(family)


def _advice(family: object) -> str:
    """What to say of a name that is another package's; empty where nothing is known of it."""
    if isinstance(family, type) and issubclass(family, Family):
        return f"give an instance, {family.__name__}(...), or a name"
    name = family if isinstance(family, str) else getattr(family, "__name__", type(family).__name__)
    letters = "".join(c for c in name.lower() if c.isalnum())
    same = {"".join(c for c in k if c.isalnum()): k for k in [*FAMILIES, Ordinal.name]}
    if letters.startswith("quasi"):
        return 'quasi-likelihoods have none of their own: "negativebinomial", or one effect a row, has overdispersion'
    if letters in ("zip", "zinb", "zeroinflated", "zeroinflatedpoisson", "hurdle"):
        return 'a part for zeros is zero="~ 1" beside "poisson", "negativebinomial" or a truncated family'
    found = same.get(letters) or ELSEWHERE.get(letters)
    return f"here it is {found!r}" if found else ""


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
        if advice := _advice(family):
            raise ModelError(f"family {_shown(family)} does not exist: {advice}")
        raise ModelError(no_such("family", family, [*FAMILIES, Ordinal.name]))
    return found(link)
