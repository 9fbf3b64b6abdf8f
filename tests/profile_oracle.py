"""Profiled deviances of a random-slope model by brute force: a grid over what is free, refined from every dip of it.

For y = X beta + z_g b_g + e with two random effects a level, b ~ N(0, sigma^2 L L'), and A_g = z_g'z_g, C_g = z_g'[X y]

    log|V| = n log sigma^2 + sum_g log det(I + L'A_g L)
    [X y]'V^-1 [X y] = ([X y]'[X y] - sum_g C_g'L (I + L'A_g L)^-1 L'C_g) / sigma^2

(Woodbury), from which beta drops out by a Schur complement. Everything is vectorised over points, nothing is clever.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import chdtri

Array = NDArray[np.float64]

PARAMETERS = ("sd0", "cor", "sd1", "sigma", "b0", "b1")
"""In the order of `conf_int`, for y ~ x + (x | g)."""

LARGEST = 1e5
SIZES = np.concatenate([[0.0], np.geomspace(0.03, 40.0, 15)])
"""Standard deviations over sigma that a grid tries, in units of a column's root mean square."""


@dataclass(frozen=True)
class SlopeModel:
    """y ~ x + (x | g) as sums over groups.

    Attributes
    ----------
    n : int
    a : (q, 2, 2)
        z'z of each level.
    c : (q, 2, 3)
        z'[1 x y] of each level.
    total : (3, 3)
        [1 x y]'[1 x y].
    scale : float
        Root mean square of x.
    spread : float
        Residual standard deviation of y on x.
    """

    n: int
    a: Array
    c: Array
    total: Array
    scale: float
    spread: float

    @classmethod
    def of(cls, y: Array, x: Array, g: NDArray[np.int64]) -> SlopeModel:
        Z = np.column_stack([np.ones(len(x)), x])
        W = np.column_stack([Z, y])
        parts = [np.flatnonzero(g == k) for k in np.unique(g)]
        a = np.array([Z[p].T @ Z[p] for p in parts])
        c = np.array([Z[p].T @ W[p] for p in parts])
        rest = y - Z @ np.linalg.lstsq(Z, y, rcond=None)[0]
        return cls(len(y), a, c, W.T @ W, float(np.sqrt(np.mean(x**2))), float(rest.std()))

    def deviance(self, factor: Array, sigma: Array | None = None, held: dict[int, float] | None = None) -> Array:
        """Deviance (k,) at relative factors L (k, 2, 2), sigma maximised out unless given, and beta unless held."""
        (l00, l10, l11), a = (factor[:, i, j][:, None] for i, j in ((0, 0), (1, 0), (1, 1))), self.a
        m00 = 1.0 + l00**2 * a[:, 0, 0] + 2.0 * l00 * l10 * a[:, 0, 1] + l10**2 * a[:, 1, 1]
        m01 = l11 * (l00 * a[:, 0, 1] + l10 * a[:, 1, 1])
        m11 = 1.0 + l11**2 * a[:, 1, 1]
        det = m00 + m11 - 1.0 + (l00 * l11) ** 2 * (a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] ** 2)
        # L M^-1 L', by level
        k00, k01, k11 = m11 / det, -m01 / det, m00 / det
        w00 = l00**2 * k00
        w01 = l00 * (l10 * k00 + l11 * k01)
        w11 = l10**2 * k00 + 2.0 * l10 * l11 * k01 + l11**2 * k11
        products = [
            np.einsum("gc,gd->gcd", self.c[:, i], self.c[:, j]).reshape(-1, 9) for i, j in ((0, 0), (0, 1), (1, 1))
        ]
        cross = (w01 @ products[1]).reshape(-1, 3, 3)
        gram = self.total - (w00 @ products[0] + w11 @ products[2]).reshape(-1, 3, 3) - cross - cross.transpose(0, 2, 1)
        free = [0, 1]
        for j, value in (held or {}).items():
            move = np.eye(3)
            move[j, 2] = -value
            gram = move.T @ gram @ move
            free.remove(j)
        for j in free:  # one column after the other is swept out
            gram = gram - gram[:, :, j, None] * gram[:, j, None, :] / gram[:, j, j, None, None]
        r2 = np.maximum(gram[:, 2, 2], 1e-300)
        logdet = np.log(det).sum(axis=1)
        if sigma is None:
            return logdet + self.n * (1.0 + np.log(2 * np.pi * r2 / self.n))
        return logdet + self.n * np.log(2 * np.pi * sigma**2) + r2 / sigma**2


def factors(sd0: Array, cor: Array, sd1: Array) -> Array:
    """L (k, 2, 2) of standard deviations over sigma and their correlation."""
    sd0, cor, sd1 = np.broadcast_arrays(sd0, cor, sd1)
    out = np.zeros((*sd0.shape, 2, 2))
    out[..., 0, 0] = sd0
    out[..., 1, 0] = cor * sd1
    out[..., 1, 1] = np.sqrt(np.maximum(1.0 - cor**2, 0.0)) * sd1
    return out


def profiled(model: SlopeModel, name: str | None = None, value: float = 0.0, refine: int = 8) -> float:
    """The least deviance with one parameter held, or with none.

    The free ones are roots of standard deviations over sigma, the arcsine of the correlation, log sigma.
    """
    angles = np.arcsin(np.concatenate([np.linspace(-0.9, 0.9, 7), [-0.999, -0.98, 0.98]]))
    axes = {"sd0": np.sqrt(SIZES), "cor": angles, "sd1": np.sqrt(SIZES / model.scale)}
    if name in ("sd0", "sd1"):
        axes["sigma"] = np.log(model.spread * np.geomspace(0.1, 1.2, 10))
    if name in axes and name != "sigma":
        del axes[name]
    names = list(axes)

    def deviance(v: Array) -> Array:
        at = dict(zip(names, v.T, strict=True))
        sigma = np.exp(at["sigma"]) if "sigma" in at else np.full(len(v), value) if name == "sigma" else None
        sd0, sd1 = (
            np.full(len(v), value) / sigma if name == key else np.minimum(at[key] ** 2, LARGEST)  # type: ignore[operator]
            for key in ("sd0", "sd1")
        )
        cor = np.full(len(v), value) if name == "cor" else np.sin(at["cor"])
        held = {"b0": {0: value}, "b1": {1: value}}.get(name or "")
        with np.errstate(all="ignore"):  # a line search may go anywhere
            found = model.deviance(factors(sd0, cor, sd1), sigma, held)
        return np.where(np.isfinite(found), found, 1e9)

    shape = [len(axis) for axis in axes.values()]
    points = np.stack([a.ravel() for a in np.meshgrid(*axes.values(), indexing="ij")], axis=1)
    grid = np.concatenate([deviance(part) for part in np.array_split(points, max(1, len(points) // 4000))])
    padded = np.pad(grid.reshape(shape), 1, constant_values=np.inf)
    dip = np.ones(shape, dtype=bool)
    for move in product((-1, 0, 1), repeat=len(shape)):
        where = tuple(slice(1 + d, 1 + d + n) for d, n in zip(move, shape, strict=True))
        dip &= grid.reshape(shape) <= padded[where]
    dips = np.flatnonzero(dip.ravel())
    best = float(grid.min())
    for start in points[dips[np.argsort(grid[dips])][:refine]]:
        best = min(best, descend(deviance, start))
    return best


def descend(deviance, start: Array) -> float:
    """A local minimum by BFGS with central differences, all points of a difference at once."""
    steps = 1e-5 * np.eye(len(start))

    def both(v: Array) -> tuple[float, Array]:
        values = deviance(np.vstack([v, v + steps, v - steps]))
        k = len(v)
        return float(values[0]), (values[1 : k + 1] - values[k + 1 :]) / 2e-5

    value = float(deviance(start[None])[0])
    for _ in range(3):  # anew from where a line search gave up
        found = minimize(both, start, jac=True, method="BFGS", options={"gtol": 1e-6})
        if found.fun > value - 1e-7:
            return min(value, float(found.fun))
        start, value = found.x, float(found.fun)
    return value


def random_model(seed: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """y, x, g of a random-slope model whose covariate is far from zero and whose slopes hardly vary, or do."""
    rng = np.random.default_rng(seed)
    q, m = int(rng.integers(8, 25)), int(rng.integers(3, 7))
    spread = rng.uniform(0.3, 3.0)
    x = rng.uniform(0.5, 12.0) + spread * np.linspace(-1.0, 1.0, m)
    x = np.tile(x, q) + (rng.normal(0.0, 0.2, q * m) if rng.random() < 0.5 else 0.0)
    g = np.repeat(np.arange(q), m)
    slope = rng.uniform(0.0, 0.6) / spread * rng.normal(size=q)
    level = rng.uniform(0.0, 1.5) * rng.normal(size=q)
    centre = 0.0 if rng.random() < 0.2 else x.mean()
    y = 1.0 + 0.7 * x + level[g] + slope[g] * (x - centre) + rng.normal(size=q * m)
    return y, x, g


CUT = float(chdtri(1, 0.05))
"""Rise of the deviance at the limits of a 95 % interval."""


def misplaced(
    model: SlopeModel, least: float, intervals: Array, names: Iterable[str] = PARAMETERS, tol: float = 0.01
) -> list[str]:
    """Limits (6, 2) of 95 % profile intervals that brute force does not confirm, in words.

    What brute force finds is some optimum, perhaps not the lowest; so it can show that a limit lies too far inside, but
    not that one lies too far outside. A limit inside the parameter's range has to be where zeta is 1.96 or more by
    brute force, and further out zeta must not fall below it again; at a bound it has to be 1.96 at most.
    """
    z = np.sqrt(CUT)

    def zeta(name: str, value: float) -> float:
        return float(np.sqrt(max(profiled(model, name, value) - least, 0.0)))

    wrong = []
    for name in names:
        limits = intervals[PARAMETERS.index(name)]
        width = limits[1] - limits[0]
        for side, limit in zip((-1, 1), limits, strict=True):
            bound = {"cor": float(side), "sd0": 0.0, "sd1": 0.0}.get(name) if side < 0 or name == "cor" else None
            if bound is not None and abs(limit - bound) < 1e-6:
                if zeta(name, bound) > z + tol:
                    wrong.append(f"{name}: {limit} is a bound that the interval does not reach")
                continue
            room = 1.0 - abs(limit) if name == "cor" else limit if bound == 0.0 else width
            for share in (0.0, 0.1, 0.5, 0.999) if bound is not None else (0.0, 0.1, 0.5):
                value = limit + side * share * room
                found = zeta(name, value)
                if found < z - tol:
                    wrong.append(f"{name}: {limit:.5g} is a limit, but zeta is {found:.4f} at {value:.5g}")
                    break
    return wrong


def check(seed: int, names: Iterable[str] = PARAMETERS) -> list[str]:
    """What is wrong with the profile intervals of a random model."""
    import pandas as pd

    from fastlmm_core import FastLMMWarning, lmer

    y, x, g = random_model(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastLMMWarning)
        fit = lmer("y ~ x + (x | g)", pd.DataFrame({"y": y, "x": x, "g": g}), reml=False)
        found = fit.profile(level=0.95)
    model = SlopeModel.of(y, x, g)
    best = profiled(model)
    wrong = [f"the fit's deviance is {found.deviance - best:.3g} too high"] if found.deviance > best + 1e-4 else []
    return wrong + misplaced(model, min(best, found.deviance), found.conf_int(0.95).to_numpy(), names)


if __name__ == "__main__":  # python tests/profile_oracle.py 0 200: about three seconds a model
    first, last = (int(text) for text in sys.argv[1:])
    bad = 0
    for seed in range(first, last):
        faults = check(seed)
        bad += bool(faults)
        for fault in faults:
            print(f"model {seed}: {fault}", flush=True)
    print(f"{bad} of {last - first} models have a limit that brute force refutes")
