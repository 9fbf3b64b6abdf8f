"""Models with given parameters instead of fitted ones, and the power of designs of several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core import Model
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.fit import model_of
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.options import FitOptions
from fastlmm_core.fitting.spelling import explained
from fastlmm_core.formula import build_design, parse_formula
from fastlmm_core.formula.evaluate import caller_names
from fastlmm_core.formula.names import names_in
from fastlmm_core.inference.expand import as_pandas, expand
from fastlmm_core.inference.power import PowerResult, power
from fastlmm_core.inference.progress import each
from fastlmm_core.inference.reductions import refuse_structures
from fastlmm_core.results.result import LmerResult

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.formula import Design

__all__ = ["HypotheticalModel", "hypothetical", "power_curve"]

Array = NDArray[np.float64]
Covariances = dict[tuple[str, tuple[str, ...]], Array]


@dataclass(frozen=True, eq=False, repr=False)
class HypotheticalModel(LmerResult):
    """A model whose parameters were given: what `hypothetical` returns.

    Everything of a fitted model works at these parameters; the response is drawn so that its estimates of beta and
    sigma are the given ones.
    """

    is_hypothetical = True

    def __repr__(self) -> str:
        groups = ", ".join(f"{name} {q}" for name, q in self.n_groups.items())
        return f"<HypotheticalModel: {self.formula}; parameters as given; {self.nobs} rows; {groups}>"


@explained
def hypothetical(
    formula: str,
    data: Any,
    *,
    params: Mapping[str, float],
    sd: Mapping[str, Any],
    cor: Mapping[tuple[str, str, str], float] | None = None,
    sigma: float = 1.0,
    reml: bool = True,
    weights: Any = None,
    offset: Any = None,
    contrasts: Mapping[str, Any] | None = None,
    control: Control | None = None,
    env: Mapping[str, Any] | None = None,
) -> HypotheticalModel:
    """A model with given parameters, to plan an experiment with: `power` simulates from it.

    Parameters
    ----------
    formula : str
        As for `lmer`. The response need not be among the data; a transformation of it is left out, as the parameters
        are on the transformed scale.
    data : table
        The design: a row an observation.
    params : mapping
        Coefficients by name; those left out are 0.
    sd : mapping
        Grouping factor to the standard deviations of its effects by name, or to one number where it has one effect.
    cor : mapping, optional
        (group, effect, effect) to their correlation; 0 where left out.
    sigma : float
        Residual standard deviation.
    reml, weights, offset, contrasts, control, env
        As for `lmer`.

    Returns
    -------
    HypotheticalModel

    Raises
    ------
    DataError
        A coefficient, group or effect that is not the model's; a standard deviation that is missing or negative;
        correlations that no covariance matrix has.

    Examples
    --------
    >>> import pandas as pd
    >>> from fastlmm_core import hypothetical
    >>> design = pd.DataFrame([(s, t) for s in range(10) for t in range(5)], columns=["subject", "time"])
    >>> model = hypothetical("y ~ time + (time | subject)", design, params={"Intercept": 10, "time": 0.6},
    ...                      sd={"subject": {"Intercept": 1.0, "time": 0.5}},
    ...                      cor={("subject", "time", "Intercept"): 0.3})
    >>> model.coef_table("kenward-roger").round(3)
               estimate  std_error   df       t      p
    Intercept      10.0      0.400  9.0  25.000  0.000
    time            0.6      0.187  9.0   3.207  0.011
    """
    env = caller_names(3) if env is None else env
    _check_scale(sigma)

    def wanted(design: Design) -> tuple[Array, Covariances]:
        return _coefficients(design, params), _covariances(design, sd, cor or {})

    options = FitOptions(reml=reml, control=control, given={} if contrasts is None else {"contrasts": contrasts})
    return _built(formula, data, wanted, sigma, options, weights, offset, env)


def _built(
    formula: str,
    data: Any,
    wanted: Any,
    sigma: float,
    options: FitOptions,
    weights: Any,
    offset: Any,
    env: Mapping[str, Any],
) -> HypotheticalModel:
    """The model of a table at the parameters that ``wanted`` has for its design."""
    contrasts = options.given.get("contrasts")
    table, text = _with_response(formula, data)
    design = build_design(text, table, weights=weights, offset=offset, contrasts=contrasts, env=env)
    refuse_structures(design, "the hypothetical form")
    beta, covariances = wanted(design)
    theta = np.concatenate([_relative(covariances[t.group, t.columns], sigma, t.group) for t in design.random])
    model = model_of(design, options)
    assert isinstance(model, Model)
    known = 0.0 if design.offset is None else design.offset
    first = model.at(design.y, theta)
    dropped = np.isnan(first.beta)
    if (dropped & (beta != 0.0)).any():
        names = ", ".join(design.x_names[j] for j in np.flatnonzero(dropped & (beta != 0.0)))
        raise DataError(f"the design cannot estimate {names}, which depends on other columns: leave it out of params")
    beta = np.where(dropped, np.nan, beta)
    residual = design.y - known - design.X @ np.nan_to_num(first.beta)
    y = known + design.X @ np.nan_to_num(beta) + residual * (sigma / first.sigma)
    core = model.at(y, theta)
    made = HypotheticalModel(design.with_response(y), core, formula, options)
    made.kept["table"] = table  # strongly: it may have been made for this model alone
    made.keep_data(table)
    return made


def _with_response(formula: str, data: Any) -> tuple[pd.DataFrame, str]:
    """The table with a response of noise, and the formula without a transformation of it."""
    parsed = parse_formula(formula)
    names = list(names_in(parsed.response))
    frame = as_pandas(data)
    name = next((n for n in reversed(names) if n.isidentifier()), "y")
    rhs = formula.split("~", 1)[1]
    noise = np.random.default_rng(0).standard_normal(len(frame))
    return frame.assign(**{name: noise}), f"{name} ~ {rhs.strip()}"


def _check_scale(sigma: float) -> None:
    if not np.isfinite(sigma) or sigma <= 0.0:
        raise DataError(f"sigma must be a positive number, not {sigma!r}")


def _coefficients(design: Design, params: Mapping[str, float]) -> Array:
    names = list(design.x_names)
    beta = np.zeros(len(names))
    for name, value in params.items():
        if name not in names:
            raise DataError(f"params names {name!r}, but the coefficients are {', '.join(names)}")
        if not isinstance(value, Real) or not np.isfinite(value):
            raise DataError(f"params has {value!r} for {name}")
        beta[names.index(name)] = value
    return beta


def _covariances(design: Design, sd: Mapping[str, Any], cor: Mapping[tuple[str, str, str], float]) -> Covariances:
    """Covariance matrix of the effects of every random term."""
    groups: dict[str, list[str]] = {}
    for term in design.random:
        groups.setdefault(term.group, []).extend(term.columns)
    for group in sd:
        if group not in groups:
            raise DataError(f"sd names {group!r}, but the grouping factors are {', '.join(groups)}")
    sizes: dict[tuple[str, str], float] = {}
    for group, effects in groups.items():
        if group not in sd:
            raise DataError(f"sd has nothing for {group}: give the standard deviations of {', '.join(effects)}")
        given = sd[group]
        if not isinstance(given, Mapping):
            if len(effects) != 1:
                raise DataError(f"{group} has the effects {', '.join(effects)}: give sd a mapping for it")
            given = {effects[0]: given}
        for effect in given:
            if effect not in effects:
                raise DataError(f"sd names {effect!r} for {group}, whose effects are {', '.join(effects)}")
        for effect in effects:
            if effect not in given or not 0.0 <= float(given[effect]) < np.inf:
                raise DataError(f"sd needs a number of 0 or more for {effect} of {group}, not {given.get(effect)!r}")
            sizes[group, effect] = float(given[effect])
    out, used = {}, set()
    for term in design.random:
        matrix = np.eye(len(term.columns))
        for (group, a, b), value in cor.items():
            if group == term.group and a in term.columns and b in term.columns and a != b:
                i, j = term.columns.index(a), term.columns.index(b)
                matrix[i, j] = matrix[j, i] = value
                used.add((group, a, b))
        scale = np.array([sizes[term.group, effect] for effect in term.columns])
        out[term.group, term.columns] = matrix * np.outer(scale, scale)
        if np.abs(matrix).max() > 1.0 or np.linalg.eigvalsh(matrix)[0] < -1e-10:
            raise DataError(f"no covariance matrix has the correlations given for {term.group}")
    for key in cor:
        if key not in used:
            raise DataError(f"cor names {key}, which are not two effects of one random term")
    return out


def _relative(covariance: Array, sigma: float, group: str) -> Array:
    """Entries of the relative factor, column by column; of a singular matrix, too."""
    scaled = covariance / sigma**2
    l = len(scaled)
    factor = np.zeros((l, l))
    for j in range(l):
        rest = scaled[j, j] - factor[j, :j] @ factor[j, :j]
        if rest > 1e-14 * max(scaled[j, j], 1e-300):
            factor[j, j] = np.sqrt(rest)
            factor[j + 1 :, j] = (scaled[j + 1 :, j] - factor[j + 1 :, :j] @ factor[j, :j]) / factor[j, j]
    return np.concatenate([factor[j:, j] for j in range(l)])


@explained
def power_curve(
    model: LmerResult,
    tests: Any,
    *,
    along: Mapping[str, Sequence[int]] | None = None,
    within: Mapping[str, Sequence[int]] | None = None,
    n: int = 1000,
    alpha: float = 0.05,
    ddf: str | None = None,
    seed: Any = None,
    params: Mapping[str, float] | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Power against the size of the design.

    Parameters
    ----------
    model : LmerResult
        From `hypothetical`, or a fit whose table is still in use.
    tests
        As in `power`; texts, or functions of the enlarged model that return `Estimates` of it.
    along : mapping, optional
        One grouping factor to numbers of its levels, see `expand`.
    within : mapping, optional
        One grouping factor to numbers of rows a level.
    n, alpha, ddf, seed, params, threads
        As in `power`.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        The columns of `PowerResult.table`, a row a size and test.

    Examples
    --------
    >>> import pandas as pd
    >>> from fastlmm_core import hypothetical, power_curve
    >>> design = pd.DataFrame([(s, t) for s in range(10) for t in range(4)], columns=["subject", "time"])
    >>> model = hypothetical("y ~ time + (1 | subject)", design, params={"time": 0.2}, sd={"subject": 1.0})
    >>> curve = power_curve(model, "time", along={"subject": [10, 40]}, n=200, seed=1)
    >>> curve["subject"].tolist(), bool(curve["power"].is_monotonic_increasing)
    ([10, 40], True)
    """
    if (along is None) == (within is None) or len(along or within or {}) != 1:
        raise ModelError("power_curve takes either along= or within=, for one grouping factor")
    if isinstance(model, GeneralisedModel):
        raise ModelError("power_curve is for linear models: power() has that of a generalised fit's own design")
    kind = "along" if along is not None else "within"
    ((name, sizes),) = (along or within or {}).items()
    if not len(sizes):
        raise DataError(f"{kind} has no size for {name}")
    table = model.kept.get("table")
    table = model.kept_data() if table is None else table
    every = list(tests) if isinstance(tests, (list, tuple)) else [tests]
    frames = []
    for size in each(sizes, progress, "power", "size"):
        larger = expand(table, {name: size}) if kind == "along" else expand(table, within={name: size})
        resized = _resized(model, larger, params)
        found: PowerResult = power(
            resized,
            [test(resized) if callable(test) else test for test in every],
            n=n,
            alpha=alpha,
            ddf=ddf,
            seed=seed,
            threads=threads,
        )
        part = found.table().reset_index()
        part.insert(0, name, size)
        frames.append(part)
    return pd.concat(frames, ignore_index=True)


def _resized(model: LmerResult, table: pd.DataFrame, params: Mapping[str, float] | None) -> HypotheticalModel:
    """The model of another table with the parameters of this one."""
    design, core = model.design, model.core
    if design.weights is not None or design.offset_given is True:
        raise ModelError("power_curve cannot enlarge weights or an offset given as arrays")
    covariances = {(t.group, t.columns): core.sigma**2 * (L @ L.T) for t, L in zip(design.random, core.L, strict=True)}
    values = dict(zip(design.x_names, np.nan_to_num(core.beta).tolist(), strict=True)) | dict(params or {})

    def wanted(larger: Design) -> tuple[Array, Covariances]:
        return _coefficients(larger, values), covariances

    offset = design.offset_given or None
    return _built(model.formula, table, wanted, core.sigma, model.options, None, offset, design.context)
