"""Shapes against their definitions, and every derivative against differences."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core.core.structures.distance import Distance
from fastlmm_core.core.structures.shapes import (
    AnteDependence,
    Autoregressive,
    CompoundSymmetry,
    Grouped,
    Independent,
    Toeplitz,
    Unstructured,
)

T = 5
POINTS = np.array([[0.0, 0.0], [0.5, 1.0], [1.3, 0.2], [2.0, 2.0], [3.1, 0.0]])
SHAPES = {
    "independent": Independent(),
    "cs": CompoundSymmetry(T),
    "ar1": Autoregressive(T),
    "toep": Toeplitz(T),
    "ad": AnteDependence(T),
    "us": Unstructured(T),
    "us with scale": Unstructured(T, scale=True),
    "exp": Distance(POINTS, 1),
    "gau": Distance(POINTS, 2),
    "exp with a nugget": Distance(POINTS, 1, nugget=True),
    "gau with a nugget": Distance(POINTS, 2, nugget=True),
    "grouped ar1": Grouped([Autoregressive(T), Autoregressive(T)], T, ("a", "b")),
    "grouped us": Grouped([Unstructured(T), Unstructured(T, scale=True)], T, ("a", "b")),
}


def place(shape):
    return shape.start() + 0.3 * np.random.default_rng(1).normal(size=shape.n)


def table(shape, psi, second=False):
    """All covariances of five positions (of the second group), with their derivatives."""
    at = np.arange(T) + (T if second else 0)
    return shape.values(psi, shape.keys(at[:, None], at[None, :]))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("second", [False, True])
def test_derivatives_are_those_of_differences(name, second):
    shape = SHAPES[name]
    if second and "grouped" not in name:
        return
    psi, h = place(shape), 1e-5
    value, first = table(shape, psi, second)
    steps = h * np.eye(shape.n)
    both = [(table(shape, psi + s, second), table(shape, psi - s, second)) for s in steps]
    for a, (up, down) in enumerate(both):
        np.testing.assert_allclose(first[a], (up[0] - down[0]) / (2 * h), atol=1e-9)
    g = np.random.default_rng(2).normal(size=(T, T))
    at = np.arange(T) + (T if second else 0)
    bend = shape.curvature(psi, shape.keys(at[:, None], at[None, :]), g)
    for a, (up, down) in enumerate(both):
        np.testing.assert_allclose(bend[a], np.sum(g * (up[1] - down[1]), axis=(1, 2)) / (2 * h), atol=1e-8)
    assert np.linalg.eigvalsh(value)[0] > 0


@pytest.mark.parametrize("name", SHAPES)
def test_natural_parameters_and_their_derivatives(name):
    shape = SHAPES[name]
    psi, h = place(shape), 1e-5
    found = shape.natural(psi)
    assert len(found.names) == len(found.values) == shape.n
    for a, step in enumerate(h * np.eye(shape.n)):
        up, down = shape.natural(psi + step), shape.natural(psi - step)
        np.testing.assert_allclose(found.jacobian[:, a], (up.values - down.values) / (2 * h), atol=1e-9)
        np.testing.assert_allclose(found.second[:, a], (up.jacobian - down.jacobian) / (2 * h), atol=1e-8)


def test_values_are_the_definitions():
    lag = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    cs, ar1, toep, ad = SHAPES["cs"], SHAPES["ar1"], SHAPES["toep"], SHAPES["ad"]
    rho = {name: shape.natural(place(shape)).values for name, shape in SHAPES.items()}
    np.testing.assert_allclose(table(cs, place(cs))[0], np.where(lag, rho["cs"][0], 1.0))
    np.testing.assert_allclose(table(ar1, place(ar1))[0], rho["ar1"][0] ** lag)
    np.testing.assert_allclose(table(toep, place(toep))[0], np.append(1.0, rho["toep"])[lag])
    products = [[np.prod(rho["ad"][min(i, j) : max(i, j)]) for j in range(T)] for i in range(T)]
    np.testing.assert_allclose(table(ad, place(ad))[0], products)
    apart = np.linalg.norm(POINTS[:, None] - POINTS, axis=2)
    for name, power in (("exp", 1), ("gau", 2)):
        expected = np.exp(-((apart / rho[name][0]) ** power))
        np.testing.assert_allclose(table(SHAPES[name], place(SHAPES[name]))[0], expected)
    us = SHAPES["us with scale"]
    value = table(us, place(us))[0]
    np.testing.assert_allclose(rho["us with scale"], [value[i, j] for j in range(T) for i in range(j, T)])


def test_groups_have_parameters_of_their_own():
    shape = SHAPES["grouped ar1"]
    psi = np.array([0.4, -0.3])
    alone = Autoregressive(T)
    np.testing.assert_array_equal(table(shape, psi)[0], table(alone, psi[:1])[0])
    np.testing.assert_array_equal(table(shape, psi, second=True)[0], table(alone, psi[1:])[0])
    assert shape.natural(psi).names == ("a rho", "b rho")


def test_compound_symmetry_reaches_negative_correlations_but_stays_positive_definite():
    shape = CompoundSymmetry(T)
    for eta in (-30.0, 30.0):
        rho = shape.natural(np.array([eta])).values[0]
        assert rho + 1e-12 > -1 / (T - 1)
        assert rho <= 1.0


def test_a_nugget_is_not_shared_with_other_places():
    psi = np.array([np.log(2.0), np.arcsin(np.sqrt(0.3))])
    apart = np.sqrt(np.square(POINTS[:, None] - POINTS).sum(axis=2))
    expected = np.where(np.eye(T, dtype=bool), 1.0, 0.7 * np.exp(-apart / 2.0))
    np.testing.assert_allclose(table(SHAPES["exp with a nugget"], psi)[0], expected)
    np.testing.assert_allclose(SHAPES["exp with a nugget"].natural(psi).values, [2.0, 0.3])


@pytest.mark.parametrize("name", SHAPES)
def test_nearer_correlations_are_weaker(name):
    shape = SHAPES[name]
    if not shape.n or not shape.scaled:
        return
    strong = 3.0 * np.abs(shape.start())
    off = ~np.eye(T, dtype=bool)
    assert np.abs(table(shape, shape.nearer(strong))[0][off]).sum() < np.abs(table(shape, strong)[0][off]).sum()
