"""The door for calls from outside: names that other packages have, arguments of a wrong type, BLAS on one thread.

A call by another package's name is answered with the one it has here. Whatever is asked of a fit passes here, so here
BLAS is held to one thread (`core.threads`) until it has its answer.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from inspect import CO_VARKEYWORDS as VARKEYWORDS
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, overload

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import SpellingError, near_names
from fastlmm_core.fitting.mistaken import RAW, explain_types

if TYPE_CHECKING:
    from fastlmm_core.core import Objective

__all__ = [
    "FIT_ARGUMENTS",
    "GLMER_ARGUMENTS",
    "METHOD_ARGUMENTS",
    "RESULT_NAMES",
    "Count",
    "Figure",
    "Fitter",
    "answered",
    "answering",
    "explained",
    "no_attribute",
]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
T = TypeVar("T")

FIT_ARGUMENTS: Mapping[str, str] = {
    "REML": "reml=, in lower case",
    "method": "reml=True or reml=False",
    "family": "an argument of glmer(); lmer() is for normal responses",
    "groups": "part of the formula: (1 | group)",
    "re_formula": "part of the formula: (x | group)",
    "vc_formula": "part of the formula: (1 | group/within)",
    "random": "part of the formula: (1 | group)",
    "devFunOnly": "objective_only=",
    "missing": 'na_action="drop", "exclude" or "raise"',
    "lmerControl": "control=Control(...)",
    "optimizer": "no choice here: control=Control(...) has the optimiser's options",
    "optCtrl": "control=Control(...)",
    "factors": "contrasts=",
    "prior": "not there: estimates are by maximum likelihood or REML",
    "priors": "not there: estimates are by maximum likelihood or REML",
}
"""Arguments of lme4, statsmodels, nlme, pymer4, brms and bambi."""

METHOD_ARGUMENTS: Mapping[str, str] = {
    "alpha": "level=, one minus that",
    "conf_level": "level=",
    "prob": "level=",
    "exog": "newdata=",
    "new_data": "newdata=",
    "data": "newdata=",
    "re_formula": "re_form=",
    "use_rfx": 're_form="all" or "none"',
    "nsim": "n=",
    "R": "n=",
    "n_sim": "n=",
    "random_state": "seed=",
    "rng": "seed=",
    "parm": "parameters=",
    "parallel": "threads=",
    "condVar": "condsd=",
    "typ": "type=",
    "test": "ddf=",
    "use_t": "ddf=",
    "vcov": "cov_type=",
    "type": "kind=",
    "group": "by=",
    "groups": "by=",
}
"""Arguments of others' methods, each by the one that a method has instead; where it has not, it does not apply."""

GLMER_ARGUMENTS: Mapping[str, str] = {
    **{name: text for name, text in FIT_ARGUMENTS.items() if name not in ("REML", "method", "family")},
    "nAGQ": "n_agq=",
    "nagq": "n_agq=",
    "nAGQ0initStep": "not needed here",
    "REML": "not there: generalised models are fitted by maximum likelihood",
    "reml": "not there: generalised models are fitted by maximum likelihood",
    "method": "n_agq=1 for Laplace's approximation, more for quadrature",
    "glmerControl": "control=Control(...)",
    "size": "trials=",
    "n": "trials=",
    "frequency_weights": "freq_weights=",
    "var_weights": "weights=",
    "ziformula": 'zero="~ x"',
    "zi_formula": 'zero="~ x"',
    "threshold": "not needed: thresholds are flexible",
    "dispformula": "not there yet",
}
"""The same for generalised models."""

RESULT_NAMES: Mapping[str, str] = {
    "VarCorr": "var_corr()",
    "cov_re": "var_corr()",
    "ranef_var": "var_corr()",
    "logLik": "llf",
    "loglikelihood": "llf",
    "REMLcrit": "criterion",
    "deviance": "criterion of an ML fit: refit_ml().criterion",
    "AIC": "aic",
    "BIC": "bic",
    "confint": "conf_int()",
    "vcov": "cov_params()",
    "getME": "theta, params, design.X, random_effects, ...: each is an attribute",
    "isSingular": "is_singular",
    "ngrps": "n_groups",
    "fitted": "fittedvalues",
    "fits": "fittedvalues",
    "df_residual": "df_resid",
    "dof": "df_model",
    "rePCA": "re_pca()",
    "refitML": "refit_ml()",
    "coefs": "coef_table()",
    "coeftable": "coef_table()",
    "fe_params": "params",
    "bse_fe": "bse",
    "scale": "sigma (the standard deviation; scale is its square)",
    "raneftables": "random_effects",
    "fit": "not needed: the result is fitted already",
    "formula_": "formula",
    "contest": "f_test() or t_test()",
    "cooks": "cooks_distance()",
}
"""Accessors of lme4, statsmodels, pymer4 and MixedModels.jl by what a result has instead."""


class Fitter(Protocol[P, R_co]):
    """A fitting function: with ``objective_only=True`` it returns the criterion instead of a fit."""

    @overload
    def __call__(self, formula: str, data: Any, *, objective_only: Literal[True], **options: Any) -> Objective: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def answered(other_names: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Answer calls with arguments that a function does not have: with its own name for them, where it has one."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters
        positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        required = [name for name in positional if parameters[name].default is inspect.Parameter.empty]
        known = frozenset(name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        bound = positional[:1] == ["self"]
        any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        explain = functools.partial(_explain, function.__name__, positional[bound:], required[bound:], known - {"self"})

        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if not (kwargs.keys() <= known and len(required) <= len(args) and (any_number or len(args) <= most)):
                explain(other_names, args[bound:], kwargs, any_number=any_number)
            try:
                with bound_on_blas():
                    return function(*args, **kwargs)
            except raw as error:
                of_types(function, args, kwargs, error)
                raise

        most, raw, of_types = len(positional), RAW, explain_types  # of this module: see _own
        bound_on_blas = one_blas_thread
        return _own(checked, function)

    return decorate


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """A function that says which argument is of the wrong type where a call fails over it."""

    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with bound_on_blas():
                return function(*args, **kwargs)
        except raw as error:
            explain(function, args, kwargs, error)
            raise

    raw, explain, bound_on_blas = RAW, explain_types, one_blas_thread
    return _own(tried, function)


def _own(wrapper: Callable[P, R], function: Callable[P, R]) -> Callable[P, R]:
    """The wrapper with the function's own globals, by which doctest knows whose docstring it is."""
    assert isinstance(wrapper, FunctionType)
    assert isinstance(function, FunctionType)
    own = FunctionType(wrapper.__code__, function.__globals__, function.__name__, None, wrapper.__closure__)
    return functools.update_wrapper(own, function)


def answering(cls: type[T]) -> type[T]:
    """Answer calls of a class's own methods in the same way; names of arguments where not any name is taken."""
    named = answered(METHOD_ARGUMENTS)
    for name, function in list(vars(cls).items()):
        if isinstance(function, FunctionType) and not name.startswith("_"):
            any_name = function.__code__.co_flags & VARKEYWORDS
            setattr(cls, name, explained(function) if any_name else named(function))
    return cls


def _explain(
    function: str,
    positional: list[str],
    required: list[str],
    known: frozenset[str],
    other_names: Mapping[str, str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    any_number: bool,
) -> None:
    """Raise SpellingError for a call that does not fit the function's parameters; return where it fits after all."""
    for name in kwargs:
        if name in known:
            continue
        theirs = other_names.get(name)
        if theirs is not None and (other_names is not METHOD_ARGUMENTS or theirs.partition("=")[0] in known):
            raise SpellingError(f"{function}() has no argument {name}=: it is {theirs}")
        raise SpellingError(f"{function}() has no argument {name}=: {_nearest(name, sorted(known))}")
    if len(args) > len(positional) and not any_number:
        named = [name for name in sorted(known) if name not in positional]
        takes = f"{' and '.join(positional)} by position" if positional else "nothing by position"
        hint = f": name the others, as in {'reml=False' if 'reml' in named else named[0] + '=...'}" if named else ""
        raise SpellingError(f"{function}() takes {takes}, {len(args)} were given{hint}")
    absent = [name for name in required[len(args) :] if name not in kwargs]
    if absent:
        raise SpellingError(f"{function}() needs {' and '.join(absent)} as well: {function}({', '.join(required)})")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}=?"
    return f"there are {', '.join(known)}" if known else "it takes none"


def no_attribute(kind: type, name: str) -> AttributeError:
    """The error about an attribute that a result does not have."""
    if name in RESULT_NAMES:
        return SpellingError(f"a result has no {name}: it is {RESULT_NAMES[name]}")
    said = f"{kind.__name__!r} object has no attribute {name!r}"
    near = [] if name.startswith("_") else near_names(name, (n for n in dir(kind) if not n.startswith("_")))
    return SpellingError(f"{said}: did you mean {' or '.join(near)}?") if near else AttributeError(said)


def _not_a_method(self: Any) -> Any:
    raise SpellingError("this is a number and no method, as in statsmodels: leave out the parentheses")


class Count(int):
    """A whole number that answers an attempt to call it, as R's accessors are called."""

    __call__ = _not_a_method


class Figure(float):
    """A number that answers an attempt to call it, as R's accessors are called."""

    __call__ = _not_a_method
