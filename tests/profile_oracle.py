"""Profiled deviances of a random-slope model by brute force: a grid over what is free, refined from every dip of it.

For y = X beta + z_g b_g + e with two random effects a level, b ~ N(0, sigma^2 L L'), and A_g = z_g'z_g, C_g = z_g'[X y]

    log|V| = n log sigma^2 + sum_g log det(I + L'A_g L)
    [X y]'V^-1 [X y] = ([X y]'[X y] - sum_g C_g'L (I + L'A_g L)^-1 L'C_g) / sigma^2

(Woodbury), from which beta drops out by a Schur complement. Everything is vectorised over points, nothing is clever.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

PARAMETERS = ("sd0", "cor", "sd1", "sigma", "b0", "b1")
"""In the order of `conf_int`, for y ~ x + (x | g)."""

ZERO = 1e-4
SIZES = np.concatenate([[0.0], np.geomspace(0.03, 40.0, 22)])
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
        lal = np.einsum("kji,gjl,klm->kgim", factor, self.a, factor)
        m = lal + np.eye(2)
        det = m[..., 0, 0] * m[..., 1, 1] - m[..., 0, 1] ** 2
        inverse = np.empty_like(m)
        inverse[..., 0, 0], inverse[..., 1, 1] = m[..., 1, 1] / det, m[..., 0, 0] / det
        inverse[..., 0, 1] = inverse[..., 1, 0] = -m[..., 0, 1] / det
        u = np.einsum("kji,gjc->kgic", factor, self.c)
        gram = self.total - np.einsum("kgic,kgij,kgjd->kcd", u, inverse, u)
        free = [0, 1]
        for j, value in (held or {}).items():
            move = np.eye(3)
            move[j, 2] = -value
            gram = move.T @ gram @ move
            free.remove(j)
        r2 = gram[:, 2, 2]
        if free:
            left = gram[:, free, 2]
            r2 = r2 - np.einsum("kc,kc->k", left, np.linalg.solve(gram[:, free][:, :, free], left[..., None])[..., 0])
        r2 = np.maximum(r2, 1e-300)
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
    angles = np.arcsin(np.concatenate([np.linspace(-0.9, 0.9, 13), [-0.999, -0.99, -0.97, 0.97, 0.99]]))
    axes = {"sd0": np.sqrt(SIZES), "cor": angles, "sd1": np.sqrt(SIZES / model.scale)}
    if name in ("sd0", "sd1"):
        axes["sigma"] = np.log(model.spread * np.geomspace(0.05, 1.2, 14))
    if name in axes and name != "sigma":
        del axes[name]
    names = list(axes)

    def deviance(v: Array) -> Array:
        at = dict(zip(names, v.T, strict=True))
        sigma = np.exp(at["sigma"]) if "sigma" in at else np.full(len(v), value) if name == "sigma" else None
        sd0, sd1 = (
            np.full(len(v), value) / sigma if name == key else at[key] ** 2  # type: ignore[operator]
            for key in ("sd0", "sd1")
        )
        cor = np.full(len(v), value) if name == "cor" else np.sin(at["cor"])
        held = {"b0": {0: value}, "b1": {1: value}}.get(name or "")
        return model.deviance(factors(sd0, cor, sd1), sigma, held)

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
