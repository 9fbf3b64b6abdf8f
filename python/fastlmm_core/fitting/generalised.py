"""A design to a fitted generalised model, with its warnings: what `glmer` and `GlmerResult.refit` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastlmm_core.core import ModelArrays
from fastlmm_core.core.glmm import GlmmFit, Model
from fastlmm_core.core.glmm.fitted import is_exact, resume
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import (
    BoundaryWarning,
    DataError,
    FastLMMWarning,
    LaplaceWarning,
    ModelError,
    SeparationWarning,
    warn,
)
from fastlmm_core.families import Ordinal, TwoPart, ZeroInflated
from fastlmm_core.fitting.fit import new_response, wrap, write_evaluation
from fastlmm_core.fitting.models import arrays_of
from fastlmm_core.fitting.separation import separation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import Control
    from fastlmm_core.core.glmm.design import GlmmDesign
    from fastlmm_core.core.glmm.fitted import Engine
    from fastlmm_core.core.terms import Term
    from fastlmm_core.families import Family
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.formula import Design

__all__ = [
    "GlmerOptions",
    "check_identified",
    "engine_at",
    "fit_generalised",
    "glmm_of",
    "kept_glmm",
    "options_of_rows",
    "refit",
    "refit_counts",
    "refuse_fine",
    "remarks",
    "settled",
    "trials_of",
]

G = TypeVar("G", bound="GeneralisedModel")

FEW_ROWS = 5
"""Binary rows a level below which Laplace's approximation gets a warning."""

NO_ZEROS = 1e-4
"""Largest share of extra zeros that counts as none."""

MOST_ALPHA = 1e6
"""Overdispersion of counts without zeros beyond which it has run to infinity."""

AT_REST = 1e-3
"""Decrease of the deviance that a search which has stopped at a limit may still promise."""

FLAT = 1e-8
"""Curvature, relative to the largest, that counts as none."""

NO_ALPHA = 1e-5
"""Overdispersion below which a negative binomial is Poisson."""


@dataclass(frozen=True, eq=False)
class GlmerOptions:
    """What a generalised fit was asked for beside its data; `refit` asks for the same again.

    Attributes
    ----------
    family : Family
    n_agq : int
    proportions : bool
        The response is successes over trials, on whose scale simulated ones are, too.
    trials : str, optional
        Expression of the trials, for other rows.
    freq_weights : (n,), optional
        Of the rows used.
    zero : Design, optional
        The zero part.
    zero_terms : tuple of Term
        Its random effects, of the rows used.
    control, start, verbose, given
        As in `FitOptions`.
    """

    family: Family
    n_agq: int = 1
    proportions: bool = False
    trials: str | None = None
    freq_weights: NDArray[np.float64] | None = None
    zero: Design | None = None
    zero_terms: tuple[Term, ...] = ()
    control: Control | None = None
    start: ArrayLike | None = None
    verbose: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)


def glmm_of(design: Design | ModelArrays, options: GlmerOptions, n_agq: int | None = None) -> Model:
    """The core's model of a design, or of arrays that were made of one, ready for any response."""
    arrays = design if isinstance(design, ModelArrays) else arrays_of(design)
    binomial = options.family.name == "binomial"
    return Model(
        arrays.X,
        arrays.terms,
        options.family,
        weights=None if binomial else arrays.weights,
        trials=arrays.weights if binomial else None,
        freq_weights=options.freq_weights,
        offset=arrays.offset,
        n_agq=options.n_agq if n_agq is None else n_agq,
        control=options.control,
        zero_terms=options.zero_terms,
    )


def check_identified(design: Design, family: Family, *, single: bool | None = None) -> None:
    """Refuse random terms that the rows cannot tell from their own distribution.

    ``single`` says whether rows are single successes or failures, where the design's weights do not.

    Raises
    ------
    ModelError
        One level a row where responses are single successes or failures, or have a dispersion of their own.
    """
    if single is None:
        single = family.name == "binomial" and (design.weights is None or bool((design.weights == 1.0).all()))
    refuse_fine({term.group: len(term.level_set) for term in design.random}, len(design.y), family, single=single)


def refuse_fine(sizes: Mapping[str, int], n: int, family: Family, *, single: bool) -> None:
    """`check_identified` for grouping factors with their numbers of levels among n rows."""
    if not single and family.name not in ("gaussian", "gamma", "inverse_gaussian", "beta"):
        return
    for group, size in sizes.items():
        if size < n:
            continue
        why = (
            "a single success or failure says nothing about a variance of its own"
            if single
            else f"its effects cannot be told from the {family.name} distribution's own dispersion"
        )
        raise ModelError(f"the grouping factor {group} has {n} levels for {n} rows: {why}")


def fit_generalised(kind: type[G], design: Design, formula: str, options: GlmerOptions) -> G:
    """Fit a design and wrap the answer.

    Warns
    -----
    ConvergenceWarning, RankWarning
        As `fit_design`.
    SeparationWarning, BoundaryWarning, LaplaceWarning
        See their classes.
    """
    with one_blas_thread():
        model = glmm_of(design, options)
        core = model.fit(design.y, start=options.start, on_evaluation=write_evaluation if options.verbose > 0 else None)
    result = wrap(kind, design, formula, options, settled(core), {"model": model})  # type: ignore[arg-type]
    return _checked(result, model, few=True)


def settled(core: GlmmFit) -> GlmmFit:
    """A fit whose search ran towards a limit of the family, where nothing changes any more, is no failure."""
    if core.converged:
        return core
    dispersed, zeros = not without_overdispersion(core), extra_zeros(core) >= NO_ZEROS
    if (dispersed and zeros) or not at_rest(core):
        return core
    what = "the share of extra zeros" if dispersed else "the overdispersion"
    return replace(core, converged=True, message=f"{what} is at its limit of zero")


def at_rest(core: GlmmFit) -> bool:
    """Whether a Newton step promises next to nothing, at a limit in what is left of the parameters."""
    with core.engine() as engine:
        if not is_exact(engine):  # its gradient is drawn
            return False
        _, gradient, hessian = engine.derivatives(core.psi)
    values, vectors = np.linalg.eigh(hessian)
    steep = values > FLAT * values[-1]
    return 0.5 * float(((vectors.T @ gradient)[steep] ** 2 / values[steep]).sum()) < AT_REST


def extra_zeros(core: GlmmFit) -> float:
    """Largest share of zeros beyond the counts' own; one where the family has no such part."""
    family = core.family
    return float(family.zero_probability(core.rho).max()) if isinstance(family, ZeroInflated) else 1.0


def without_overdispersion(core: GlmmFit) -> bool:
    """Whether a negative binomial is Poisson."""
    return bool(core.family.n_extra) and core.family_params.get("alpha", 1.0) < NO_ALPHA


def remarks(core: GlmmFit, design: GlmmDesign, names: tuple[str, ...]) -> list[tuple[type[FastLMMWarning], str]]:
    """What the estimates are no estimates of: separation, parameters at a limit of their family."""
    found: list[tuple[type[FastLMMWarning], str]] = []
    if text := separation(core, design, names):
        found.append((SeparationWarning, text))
    if without_overdispersion(core):
        alpha = core.family_params["alpha"]
        enough = core.family.name.replace("negativebinomial", "poisson").replace("nbinom", "poisson").rstrip("12")
        text = f"the overdispersion alpha is at its limit of zero ({alpha:.2g}): the {enough} family is enough"
        found.append((BoundaryWarning, text))
    if core.family.name.startswith("truncated") and core.family_params.get("alpha", 0.0) > MOST_ALPHA:
        text = (
            f"the overdispersion alpha has no finite estimate ({core.family_params['alpha']:.2g}): these counts are "
            "those of a logarithmic series, and the intercept goes to minus infinity with it"
        )
        found.append((BoundaryWarning, text))
    if (share := extra_zeros(core)) < NO_ZEROS:
        enough = core.family.name.removeprefix(f"{ZeroInflated.name}_")
        text = (
            f"the share of zeros beyond the counts' own is at its limit of zero ({share:.2g}): the {enough} family is "
            "enough"
        )
        found.append((BoundaryWarning, text))
    return found


def _checked(result: G, model: Model, *, few: bool) -> G:
    """The result with remarks on its estimates, which are warnings too; ``few`` rows a level are among them."""
    core, design, options = result.core, result.design, result.options
    notes = []
    for category, text in remarks(core, model.design, design.x_names):
        notes.append(text)
        warn(text, category)
    if few and core.family.name == "binomial" and options.n_agq == 1 and design.weights is None:
        sizes = {t.group: float(np.median(np.bincount(t.codes))) for t in design.random}
        group, size = min(sizes.items(), key=lambda item: item[1])
        if size < FEW_ROWS:
            better = "n_agq=15 is better" if len(sizes) == 1 else "laplace_check() says how much it matters"
            text = (
                f"Laplace's approximation is rough for binary responses with few rows a level: half the levels of "
                f"{group} have {size:g} or fewer; {better}"
            )
            notes.append(text)
            warn(text, LaplaceWarning)
    return replace(result, remarks=tuple(notes)) if notes else result


def kept_glmm(result: GeneralisedModel) -> Model:
    """The core's model of a result, which its refits share; made again where it was not kept."""
    model: Model | None = result.kept.get("model")
    if model is None:
        model = result.kept.setdefault("model", glmm_of(result.design, result.options))
    return model


@contextmanager
def engine_at(result: GeneralisedModel) -> Iterator[Engine]:
    """An engine with the fit's response at its estimates, alone in a `with` block; for a first look, Laplace's."""
    model = kept_glmm(result)
    if result.options.n_agq == 0:
        model = result.kept.setdefault("laplace", glmm_of(result.design, result.options, n_agq=1))
    core: GlmmFit = result.core
    with one_blas_thread(), model.engine.turn.reading():
        resume(model.engine, core.y, core.place)
        model.engine.locate(core.psi)
        yield model.engine


def refit(result: G, new_y: Any) -> G:
    """The same model and options with another response, on the scale of the first; see `GlmerResult.refit`."""
    design, options = result.design, result.options
    if isinstance(options.family, Ordinal):
        new_y = _categories(design.of_rows(new_y, "new_y"), options.family)
    y = new_response(new_y, design)
    if options.proportions:
        assert design.weights is not None
        y = np.rint(y * design.weights)
    return refit_counts(result, y)


def refit_counts(result: G, y: NDArray[np.float64]) -> G:
    """`refit` to a response (n,) as the core has it: successes, categories numbered from zero."""
    design, options, core = result.design, result.options, result.core
    model = kept_glmm(result)
    start = core.again if options.start is None else options.start
    with one_blas_thread():
        found = model.fit(y, start=start)
    again = wrap(type(result), design.with_response(y), result.formula, options, settled(found), result.kept)  # type: ignore[arg-type]
    return _checked(again, model, few=False)


def _categories(new_y: Any, family: Ordinal) -> NDArray[np.float64]:
    """Numbers from zero for the labels of categories."""
    values = np.asarray(new_y)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    place = {level: float(k) for k, level in enumerate(family.levels)}
    labels = [f"{v:g}" if isinstance(v, (int, float, np.number)) else str(v) for v in values.ravel().tolist()]
    unknown = sorted({label for label in labels if label not in place})
    if unknown:
        raise DataError(f"new_y has the level {unknown[0]!r}, but the response's are {', '.join(family.levels)}")
    return np.array([place[label] for label in labels])


def options_of_rows(options: GlmerOptions, rows: NDArray[np.bool_]) -> GlmerOptions:
    """The options for some of the rows of a fit."""
    family, counts = options.family, options.freq_weights
    if isinstance(family, TwoPart) and family.zero is not None:
        family = family.at(family.zero[rows], None if family.offset is None else family.offset[rows])
    terms = ModelArrays(np.empty((len(rows), 0)), options.zero_terms).rows(rows).terms
    return replace(options, family=family, freq_weights=None if counts is None else counts[rows], zero_terms=terms)


def trials_of(result: GeneralisedModel, data: Any) -> NDArray[np.float64] | None:
    """Trials of other rows, from the expression that the fit had; None where each row is one trial.

    Raises
    ------
    DataError
        The fit's trials were an array.
    """
    if result.options.family.name != "binomial" or result.design.weights is None:
        return None
    if result.options.trials is None:
        raise DataError("the model's trials were an array: for new rows they have to be a column or an expression")
    from fastlmm_core.formula.frame import Table
    from fastlmm_core.formula.rowwise import numeric_argument

    table = Table(data)
    table.require(table.mentioned_in([result.options.trials]))
    return numeric_argument(result.options.trials, "trials", table, result.design.context)
