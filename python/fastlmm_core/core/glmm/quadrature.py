"""Models with one grouping factor: Laplace's approximation or adaptive quadrature, level by level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.quadrature import Quadrature
from fastlmm_core._native.rows.crossprod import sort_rows
from fastlmm_core.core.control import Control
from fastlmm_core.core.curvature import second_derivatives
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.workspaces import TakenInTurn
from fastlmm_core.errors import ModelError

__all__ = ["OneFactor", "gauss_hermite"]

Array = NDArray[np.float64]

MAX_NODES = 10_000


def gauss_hermite(k: int, l: int) -> tuple[Array, Array]:
    """Product rule of k points in each of l dimensions for the standard normal: nodes (k^l, l), weights that sum to 1.

    Raises
    ------
    ModelError
        More than 10,000 nodes.
    """
    if k**l > MAX_NODES:
        raise ModelError(
            f"n_agq={k} makes {k}^{l} nodes for a term of {l} columns: use at most {int(MAX_NODES ** (1 / l))}"
        )
    z, w = np.polynomial.hermite_e.hermegauss(k)
    nodes = np.stack(np.meshgrid(*[z] * l, indexing="ij"), axis=-1).reshape(-1, l)
    weights = np.stack(np.meshgrid(*[w / w.sum()] * l, indexing="ij"), axis=-1).reshape(-1, l).prod(axis=1)
    kept = weights > 0  # far corners underflow
    return np.ascontiguousarray(nodes[kept]), weights[kept]


class OneFactor(TakenInTurn):
    """The engine of a design with one grouping factor and a compiled family.

    Parameters
    ----------
    design : GlmmDesign
    n_agq : int
        Quadrature points in each dimension; 1 is Laplace.
    control : Control
    """

    patience = 1.0

    def __init__(self, design: GlmmDesign, n_agq: int, control: Control) -> None:
        family, group, z = design.family, design.groups[0], design.z[0]
        nodes, weights = np.zeros((1, group.n_columns)), np.ones(1)
        if n_agq > 1:
            nodes, weights = gauss_hermite(n_agq, group.n_columns)
        ptr, self.order = sort_rows(design.codes[0], group.n_levels)
        columns = np.ones((design.n, 1)) if z is None else z
        self.design, self.n_agq, self.control = design, n_agq, control
        self.nobody_has_it()
        self.criterion = Quadrature(
            family.code,
            family.link.code,
            ptr,
            np.ascontiguousarray(design.columns[self.order]),
            np.ascontiguousarray(columns[self.order]),
            design.offset[self.order],
            design.m[self.order],
            design.freq[self.order] if len(design.freq) else design.freq,
            np.ascontiguousarray(design.theta_map.index[:, 1]),
            np.ascontiguousarray(design.theta_map.index[:, 2]),
            bool(family.n_extra),
            design.rho(np.zeros(design.n_free)) if not family.n_extra else 0.0,
            nodes,
            np.log(weights),
            control.weights == "expected",
            control.n_threads,
            family.rho_range,
        )

    @property
    def arguments(self) -> tuple[GlmmDesign, int, Control]:
        """See `TakenInTurn`."""
        return self.design, self.n_agq, self.control

    def set_response(self, y: Array) -> None:
        """Replace the response (n,), already checked."""
        self.holder = None
        self.criterion.set_response(y[self.order])

    def place(self) -> tuple[Array, ...]:
        """Modes u (q, l) where derivatives were last taken, for `begin_at`."""
        return (self.criterion.place(),)

    def begin_at(self, place: tuple[Array, ...]) -> None:
        """Look for the next modes from a place."""
        self.criterion.begin_at(*place)

    def value(self, psi: Array) -> float:
        """The deviance at psi."""
        return self.criterion.value(psi)

    def derivatives(self, psi: Array) -> tuple[float, Array, Array]:
        """Deviance, gradient and model Hessian at psi."""
        return self.criterion.derivatives(psi)

    def locate(self, psi: Array) -> float:
        """The modes at psi, where their deviance is known as well."""
        return self.value(psi)

    def settled(self, psi: Array) -> Array:
        """All of psi is the optimiser's."""
        return psi

    def information(self, psi: Array) -> Array:
        """Second derivatives of the deviance at psi."""
        return second_derivatives(self.derivatives, psi)

    def modes(self) -> list[Array]:
        """Conditioned b (q, l) of each group where the deviance was last taken."""
        return [self.criterion.modes()]

    def cond_var(self) -> list[Array]:
        """Conditioned covariances (q, l, l) of b given the data, of each group, where the deviance was last taken."""
        return [self.criterion.cond_var()]
