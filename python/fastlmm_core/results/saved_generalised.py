"""What a file keeps of a generalised fit: the rows, what was asked for, and where the optimum lies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError
from fastlmm_core.families import Hurdle, Ordinal, TwoPart, ZeroInflated, as_family
from fastlmm_core.fitting.fit import wrap
from fastlmm_core.fitting.generalised import GlmerOptions, glmm_of
from fastlmm_core.fitting.models import core_terms
from fastlmm_core.inference.same_data import row_prints
from fastlmm_core.results.glmer_result import GlmerResult
from fastlmm_core.results.glmer_summary import residual_quantiles
from fastlmm_core.results.saved_figures import SavedGlmCore, SavedGlmerResult, without_rows

if TYPE_CHECKING:
    from fastlmm_core.families import Family
    from fastlmm_core.formula import Design

__all__ = ["contents_of", "figures_of", "restored", "shown"]


def contents_of(result: GlmerResult) -> dict[str, Any]:
    """The fit in terms of what a file can hold.

    Raises
    ------
    ModelError
        A family of the user's own, or a fit by the iterative engine.
    """
    if result.monte_carlo is not None:
        raise ModelError(
            "a file does not keep a generalised fit by the iterative engine with its rows: save(path) keeps the "
            "figures, a pickle all"
        )
    options, core = result.options, result.core
    given = {k: v for k, v in options.given.items() if k != "link"}
    return {
        "design": result.design,
        "family": _contents_of_family(options.family),
        "zero": options.zero,
        "search": [core.psi, core.criterion, core._evaluations, core.converged, core.message, core.place],
        "remarks": result.remarks,
        "options": {"n_agq": options.n_agq, "proportions": options.proportions, "trials": options.trials},
        "freq_weights": options.freq_weights,
        "control": options.control,
        "given": given,
    }


PARTS: dict[str, type[TwoPart]] = {kind.name: kind for kind in (Hurdle, ZeroInflated)}


def _contents_of_family(family: Family) -> dict[str, Any]:
    """What `family_of` makes the family of again."""
    if type(family) is Ordinal:
        return {"name": family.name, "link": family.link.name, "levels": list(family.levels)}
    if type(family) in PARTS.values():
        assert isinstance(family, TwoPart)
        part: dict[str, Any] = {"kind": type(family).name, "zero": family.zero, "columns": list(family.columns)}
        part |= {"offset": family.offset, "effects": [[group, list(names)] for group, names in family.effects]}
        return {**_contents_of_family(family.base), "part": part}
    if family.code < 0 or type(family) is not type(as_family(family.name)):
        raise ModelError(f"a fit of the family {family.name}, which is not one of this package's, cannot be saved")
    return {"name": family.name, "link": family.link.name, "given": family.fixed_rho}


def family_of(saved: dict[str, Any]) -> Family:
    """The family with its link, the parameter that was given, its levels, its zero part."""
    if saved["name"] == Ordinal.name:
        return Ordinal(saved["link"], levels=saved["levels"])
    if "part" in saved:
        part = saved["part"]
        base = family_of({k: v for k, v in saved.items() if k != "part"})
        known = {"offset": part["offset"], "effects": [(group, names) for group, names in part["effects"]]}
        return PARTS[part["kind"]](base, part["zero"], part["columns"], **known)
    family = as_family(saved["name"], saved["link"])
    if saved["given"] is not None:
        object.__setattr__(family, "fixed_rho", saved["given"])
    return family


def restored(design: Design, contents: dict[str, Any]) -> GlmerResult:
    """The fit: its model set up again, at the optimum that it had."""
    options = GlmerOptions(
        family_of(contents["family"]),
        **contents["options"],
        freq_weights=contents["freq_weights"],
        zero=contents["zero"],
        zero_terms=() if contents["zero"] is None else tuple(core_terms(contents["zero"])),
        control=contents["control"],
        given=contents["given"],
    )
    with one_blas_thread():
        model = glmm_of(design, options)
        core = model.revive(design.y, *contents["search"])
    result = wrap(GlmerResult, design, contents["formula"], options, core, {"model": model})  # type: ignore[arg-type]
    return replace(result, remarks=tuple(contents["remarks"]))


FIGURES = (
    *("theta", "beta", "rho", "cov", "cov_beta", "criterion", "n", "rank", "n_agq", "is_singular", "b", "L", "log"),
    *("converged", "message", "control"),
)
"""What a file without rows keeps of the core's fit."""


def figures_of(result: GlmerResult) -> dict[str, Any]:
    """What a file without rows keeps of a fit.

    Raises
    ------
    ModelError
        A family of the user's own; variances that the data do not identify; random effects of zeros, or arrays.
    """
    core, options, family = result.core, result.options, result.options.family
    if core.unidentified is not None:
        raise ModelError("a fit with variances that the data do not identify is saved with data=True only")
    if isinstance(family, TwoPart):
        if family.effects:
            raise ModelError("a fit whose part for zeros has random effects is saved with data=True only")
        if options.zero is None and not (family.zero is None and family.offset is None):
            raise ModelError("a fit whose part for zeros was an array is saved with data=True only")
        family = family.at(None, None)  # its rows
    figures = {name: getattr(core, name) for name in FIGURES} | {"monte_carlo": result.monte_carlo}
    figures |= {
        "conditional": core.cond_var(),
        "null_space": None if core.rank == len(core.beta) else core._null_space,
    }
    kept = {"remarks": result.remarks, "quantiles": residual_quantiles(result).to_numpy(), "prints": row_prints(result)}
    return {
        "design": without_rows(result.design),
        "figures": figures,
        "generalised": _contents_of_family(family),
        "kept": kept,
        "options": {"n_agq": options.n_agq, "proportions": options.proportions, "trials": options.trials},
        "zero": None if options.zero is None else without_rows(options.zero),
        "given": {k: v for k, v in options.given.items() if k not in ("link", "weights", "freq_weights")},
    }


def shown(design: Design, contents: dict[str, Any], saved: dict[str, Any]) -> SavedGlmerResult:
    """The figures that `figures_of` kept, as a result; `saved` is what it writes again."""
    family = family_of(contents["generalised"])
    core = SavedGlmCore(**contents["figures"], family=family)
    options = GlmerOptions(family, **contents["options"], zero=contents["zero"], given=contents["given"])
    kept = {**contents["kept"], "saved": saved}
    remarks = tuple(kept["remarks"])
    return SavedGlmerResult(design, core, contents["formula"], options, kept, remarks)  # type: ignore[arg-type]
