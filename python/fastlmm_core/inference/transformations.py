"""Transformed responses and links: from the scale of the linear predictor back to the response's."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fastlmm_core.errors import ModelError

if TYPE_CHECKING:
    from fastlmm_core.families import Link

__all__ = ["TRANSFORMATIONS", "Transformation", "of_link", "of_response"]

_DOTTED = re.compile(r"`[^`]*`|(?<![\w.])[A-Za-z_]\w*(?:\.\w+)+(?![\w.]*\s*\()")
"""Quoted names, and dotted ones that are no functions: columns whose names Python does not read as one."""

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Transformation:
    """A monotone map of the response, by its inverse h and the derivatives of h.

    Attributes
    ----------
    name : str
    inverse, first, second, third : callable
        h(eta) and its derivatives; the last two are used for the bias of h(mean) alone.
    floor, ceiling : float
        h at minus and plus infinity.
    ratio : str
        What a difference becomes on the response's scale, "ratio" for logarithms; empty where it is nothing simple.
    shift : float
        The constant added to the response before it was transformed, taken off again; ratios are of the sums.
    stretch : float
        h is monotone from zero to here, and on each such stretch beyond and below; zero where it is everywhere.
    """

    name: str
    inverse: Function
    first: Function
    second: Function | None = None
    third: Function | None = None
    floor: float = -np.inf
    ceiling: float = np.inf
    ratio: str = ""
    shift: float = 0.0
    stretch: float = 0.0

    def within(self, eta: Array, end: Array) -> Array:
        """An interval's end no further from eta than h goes on rising, or falling: 1 / eta has a pole at zero."""
        if not self.stretch:
            return end
        sign, first = np.copysign(1.0, eta), np.zeros(np.shape(eta))
        if np.isfinite(self.stretch):
            first = np.floor(np.abs(eta) / self.stretch) * self.stretch
        return np.asarray(sign * np.clip(sign * end, first, first + self.stretch))

    def back(self, eta: Array, sigma: float = 0.0) -> Array:
        """h(eta) - shift, with the bias of a mean of h to second order, sigma^2 h''(eta) / 2."""
        with np.errstate(over="ignore"):
            value = self.inverse(eta)
            if sigma:
                assert self.second is not None
                value = value + 0.5 * sigma**2 * self.second(eta)
        value = np.where(eta == -np.inf, self.floor, np.where(eta == np.inf, self.ceiling, value))
        return np.asarray(value - self.shift)

    def slope(self, eta: Array, sigma: float = 0.0) -> Array:
        """Derivative of `back`."""
        value = self.first(eta)
        if sigma:
            assert self.third is not None
            value = value + 0.5 * sigma**2 * self.third(eta)
        return np.asarray(value)


@dataclass(frozen=True)
class _Power:
    """h(eta) = base^eta times log(base)^k, as an object that pickles."""

    base: float
    order: int = 0

    def __call__(self, eta: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(np.log(self.base) ** self.order * np.power(self.base, eta))


def _logarithm(name: str, base: float) -> Transformation:
    h = [_Power(base, order) for order in range(4)]
    return Transformation(name, h[0], h[1], h[2], h[3], floor=0.0, ratio="ratio")


@dataclass(frozen=True)
class _Root:
    """A derivative of h(eta) = eta^exponent, as an object that pickles; NaN where eta has no such power."""

    exponent: float
    order: int = 0

    def __call__(self, eta: Array) -> Array:
        factor = math.prod(self.exponent - i for i in range(self.order))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.asarray(factor * np.power(eta, self.exponent - self.order))


@dataclass(frozen=True)
class _SquaredSine:
    """A derivative of h(eta) = sin(eta)^2 = (1 - cos(2 eta)) / 2, as an object that pickles."""

    order: int = 0

    def __call__(self, eta: Array) -> Array:
        wave = -0.5 * 2.0**self.order * np.cos(2.0 * np.asarray(eta) + 0.5 * np.pi * self.order)
        return np.asarray(wave if self.order else wave + 0.5)


def _power(name: str, exponent: float) -> Transformation:
    """The response raised to a power."""
    h = [_Root(1.0 / exponent, order) for order in range(4)]
    stretch = 0.0 if exponent > 0 and exponent % 2 == 1 else np.inf  # odd powers have roots of both signs
    ceiling = np.inf if exponent > 0 else 0.0
    return Transformation(name, h[0], h[1], h[2], h[3], floor=np.nan, ceiling=ceiling, stretch=stretch)


def _square(eta: Array) -> Array:
    return np.asarray(eta**2)


def _double(eta: Array) -> Array:
    return np.asarray(2.0 * eta)


def _two(eta: Array) -> Array:
    return np.full(np.shape(eta), 2.0)


def _zero(eta: Array) -> Array:
    return np.zeros(np.shape(eta))


def _one(eta: Array) -> Array:
    return np.ones(np.shape(eta))


def _same(eta: Array) -> Array:
    return np.asarray(eta, dtype=np.float64)


def _logistic_slope(eta: Array) -> Array:
    p = special.expit(eta)
    return np.asarray(p * (1.0 - p))


def _logistic_second(eta: Array) -> Array:
    p = special.expit(eta)
    return np.asarray(p * (1.0 - p) * (1.0 - 2.0 * p))


def _logistic_third(eta: Array) -> Array:
    p = special.expit(eta)
    return np.asarray(p * (1.0 - p) * (1.0 - 6.0 * p + 6.0 * p * p))


TRANSFORMATIONS = {
    "log": _logarithm("log", math.e),
    "log2": _logarithm("log2", 2.0),
    "log10": _logarithm("log10", 10.0),
    "log1p": Transformation("log1p", np.expm1, np.exp, np.exp, np.exp, floor=-1.0),
    "sqrt": Transformation("sqrt", _square, _double, _two, _zero, floor=0.0, stretch=np.inf),
    "identity": Transformation("identity", _same, _one, _zero, _zero),
    "logit": Transformation(
        "logit", special.expit, _logistic_slope, _logistic_second, _logistic_third, 0.0, 1.0, "odds_ratio"
    ),
    "inverse": _power("inverse", -1.0),
    "arcsine": Transformation(
        "arcsine", _SquaredSine(), _SquaredSine(1), _SquaredSine(2), _SquaredSine(3), stretch=0.5 * np.pi
    ),
}


@dataclass(frozen=True)
class _OfLink:
    """Derivative of a link's inverse, as an object that pickles."""

    link: Link
    order: int

    def __call__(self, eta: Array) -> Array:
        return self.link.derivatives(eta)[self.order]


def of_link(link: Link) -> Transformation:
    """The scale of a generalised model's linear predictor: its differences are odds ratios, ratios, or nothing else."""
    h = [_OfLink(link, order) for order in range(4)]
    ends = link.inverse(np.array([-1e8, 1e8]))
    ratio = {"logit": "odds_ratio", "log": "ratio"}.get(link.name, "")
    stretch = np.inf if link.name in ("sqrt", "inverse") else 0.0
    return Transformation(link.name, h[0], h[1], h[2], h[3], float(ends[0]), float(ends[1]), ratio, stretch=stretch)


def of_response(response: str) -> Transformation:
    """The transformation that a formula's left side applies: `log(y)`, `log(y + 1)`, `log(y / (1 - y))`, or none.

    Powers are `y**k`, `1 / y` and their like inside `I()`, the arcsine is `asin(sqrt(y))`.

    Raises
    ------
    ModelError
        A left side that is neither a column nor a call of a known transformation.
    """
    text = response.strip()
    try:
        node: Any = ast.parse(_DOTTED.sub("y", text), mode="eval").body
    except SyntaxError:
        node = None
    if isinstance(node, (ast.Name, ast.Attribute)):
        return TRANSFORMATIONS["identity"]
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        known = TRANSFORMATIONS.get("identity" if function == "I" else function)
        inner = node.args[0]
        if known is not None and isinstance(inner, (ast.Name, ast.Attribute)):
            return known
        if (other := _composed(function, inner)) is not None:
            return other
        if known is not None and (shift := _constant_added(inner)) is not None:
            return Transformation(
                f"{function} of a shifted response",
                known.inverse,
                known.first,
                known.second,
                known.third,
                known.floor,
                known.ceiling,
                known.ratio,
                shift,
                known.stretch,
            )
    if (other := _composed("I", node)) is not None:
        return other
    raise ModelError(
        f"the response {text} is not one of the transformations known ({', '.join(TRANSFORMATIONS)}): pass a pair "
        "(inverse, its derivative) to transform()"
    )


def _composed(function: str, inner: Any) -> Transformation | None:
    """The transformation of `log(y / (1 - y))`, `asin(sqrt(y))`, and in `I()` of `1 / y` and `y**k`."""
    if inner is None:
        return None
    text = ast.unparse(inner)
    called = {n.func for n in ast.walk(inner) if isinstance(n, ast.Call)}
    names = (n for n in ast.walk(inner) if isinstance(n, ast.Name) and n not in called)
    y = next((n.id for n in names if n.id not in ("np", "numpy")), "")
    if function == "log" and text == f"{y} / (1 - {y})":
        return TRANSFORMATIONS["logit"]
    if function in ("arcsin", "asin") and text in (f"sqrt({y})", f"np.sqrt({y})", f"numpy.sqrt({y})"):
        return TRANSFORMATIONS["arcsine"]
    if function != "I" or not isinstance(inner, ast.BinOp):
        return None
    if text == f"1 / {y}":
        return TRANSFORMATIONS["inverse"]
    if isinstance(inner.op, ast.Pow) and isinstance(inner.left, ast.Name):
        try:
            exponent = float(ast.literal_eval(inner.right))
        except (ValueError, TypeError):
            return None
        return _power(f"power {exponent:g}", exponent) if exponent else None
    return None


def _constant_added(node: Any) -> float | None:
    """The constant of `y + c`, `c + y` or `y - c`."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, (ast.Add, ast.Sub)):
        return None
    left, right = node.left, node.right
    if isinstance(left, ast.Constant) and isinstance(right, ast.Name) and isinstance(node.op, ast.Add):
        left, right = right, left
    if isinstance(left, ast.Name) and isinstance(right, ast.Constant) and isinstance(right.value, (int, float)):
        return float(right.value) if isinstance(node.op, ast.Add) else -float(right.value)
    return None
