"""Arguments of the wrong type: said when a call has failed over one, by the types that the function's signature names.

Nothing is checked beforehand, so that a call that goes well costs nothing and whatever behaves like a number or a list
is one. Where a call ends in an error that is none of this package's, its arguments are compared with the annotations;
the error is left as it is where they fit.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np

from fastlmm_core.errors import DataError, FastLMMError

__all__ = ["RAW", "explain_types"]

RAW = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""Errors of Python, NumPy and pandas that an argument of the wrong type ends in."""

TEXTS = (str, bytes)
PLURALS = {"a text": "texts", "a number": "numbers", "a whole number": "whole numbers", "a list": "lists"}
PLURALS |= {f"a list of {of}": f"lists of {of}" for of in ("texts", "numbers", "whole numbers")}
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("True or False", lambda v: isinstance(v, (bool, np.bool_))),
    "int": ("a whole number", lambda v: isinstance(v, Integral)),
    "float": ("a number", lambda v: isinstance(v, Real)),
    "str": ("a text", lambda v: isinstance(v, str)),
    "None": ("None", lambda v: v is None),
    "Mapping": ("a dict", lambda v: isinstance(v, Mapping)),
    "dict": ("a dict", lambda v: isinstance(v, Mapping)),
    "Hashable": ("a single value", lambda v: isinstance(v, Hashable)),
    "Callable": ("a function", callable),
    "Sequence": ("a list", lambda v: isinstance(v, Iterable) and not isinstance(v, TEXTS)),
    "Iterable": ("a list", lambda v: isinstance(v, Iterable) and not isinstance(v, TEXTS)),
    "list": ("a list", lambda v: isinstance(v, Iterable) and not isinstance(v, TEXTS)),
    "FittedModel": ("a fitted model", lambda v: hasattr(v, "core") and hasattr(v, "design")),
    "LmerResult": ("a fitted model", lambda v: hasattr(v, "core") and hasattr(v, "design")),
    "GlmerResult": ("a fitted model", lambda v: hasattr(v, "core") and hasattr(v, "design")),
    "PathLike": ("a path", lambda v: isinstance(v, PathLike)),
    "Statistic": ("a function", callable),
    "tuple": ("a tuple", lambda v: isinstance(v, (tuple, list))),
    "ArrayLike": ("numbers", lambda v: np.asarray(v).dtype.kind in "biuf"),
}  # fmt: skip
"""What an annotation is called, and whether a value is one."""


def explain_types(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> None:
    """Raise DataError for the first argument of a failed call whose type is not the one that the function asks for.

    Parameters
    ----------
    function : callable
    args, kwargs
        What it was called with.
    error : Exception
        What it ended in.
    """
    if isinstance(error, FastLMMError):
        return
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return
    for name, value in given.items():
        annotation = function.__annotations__.get(name)
        parameter = inspect.signature(function).parameters[name]
        if not isinstance(annotation, str) or parameter.kind is parameter.VAR_KEYWORD:
            continue
        for each in value if parameter.kind is parameter.VAR_POSITIONAL else (value,):
            _check(name, each, annotation, error)


def _check(name: str, value: Any, annotation: str, error: Exception) -> None:
    """Raise DataError where a value is none of the kinds that its annotation allows."""
    wanted = _wanted(ast.parse(annotation, mode="eval").body)
    if wanted is None and hasattr(value, "ndim") and "truth value" in str(error) and annotation != "Any":
        raise DataError(f"{name} cannot be {_shown(value)}") from error
    if wanted is None or any(_fits(fits, value) for _, fits in wanted):
        return
    names = list(dict.fromkeys(text for text, _ in wanted))
    raise DataError(f"{name} must be {' or '.join(names)}, not {_shown(value)}") from error


def _fits(kind: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value is of a kind; no where looking fails: rows of several lengths, an array without a dimension."""
    try:
        return kind(value)
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str:
    """A value in a message: itself where it is short."""
    text = repr(value)
    plain = isinstance(value, (str, int, float, dict, type(None)))
    return text if plain and len(text) <= 40 else f"a {type(value).__name__}"


def _wanted(node: ast.expr) -> list[tuple[str, Callable[[Any], bool]]] | None:
    """The kinds that an annotation allows; None where one of them is not known here."""
    if isinstance(node, ast.BinOp):
        left, right = _wanted(node.left), _wanted(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.Constant):
        return [KINDS["None"]] if node.value is None else None
    inner = node.slice if isinstance(node, ast.Subscript) else None
    head = node.value if isinstance(node, ast.Subscript) else node
    name = head.id if isinstance(head, ast.Name) else ""
    if name == "Literal" and inner is not None:
        choices = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        return [_choice(choice.value) for choice in choices if isinstance(choice, ast.Constant)]
    if name not in KINDS:
        return None
    text, fits = KINDS[name]
    own = {"Sequence": inner, "Iterable": inner, "list": inner}.get(name)
    if name == "Mapping" and isinstance(inner, ast.Tuple):
        own = inner.elts[1]
    element = None if own is None else _wanted(own)
    if element is None:
        return [(text, fits)]
    members = " or ".join(PLURALS.get(what, what) for what, _ in element)

    def all_fit(v: Any) -> bool:
        each = v.values() if isinstance(v, Mapping) else v
        return fits(v) and all(any(one(e) for _, one in element) for e in each)

    return [(f"{text} of {members}", all_fit)]


def _choice(value: Any) -> tuple[str, Callable[[Any], bool]]:
    return repr(value), lambda v: type(v) is type(value) and bool(v == value)
