from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from fastlmm_core.core.descent import Derivatives, Function, descend, minimise
from fastlmm_core.errors import NumericalError

Whole = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray, float]]


def in_two(function: Whole) -> Function:
    """Value first, derivatives on demand."""

    def value(x: np.ndarray) -> tuple[float, Derivatives]:
        found, *rest = function(x)
        return found, lambda: (rest[0], rest[1], rest[2])

    return value


def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    a, b = x
    value = (1 - a) ** 2 + 100 * (b - a * a) ** 2
    gradient = np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])
    hessian = np.array([[2 - 400 * (b - 3 * a * a), -400 * a], [-400 * a, 200.0]])
    return float(value), gradient, hessian, float(a)


def test_a_curved_valley() -> None:
    found = descend(in_two(rosenbrock), np.array([-1.2, 1.0]), tol=1e-14)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-5)
    assert abs(found.value) < 1e-10
    assert found.figure == found.x[0]


def test_a_saddle_is_left() -> None:
    def well(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        a, b = x
        value = a**4 - a**2 + b**2
        return float(value), np.array([4 * a**3 - 2 * a, 2 * b]), np.diag([12 * a**2 - 2, 2.0]), 0.0

    found = descend(in_two(well), np.zeros(2))
    np.testing.assert_allclose(abs(found.x[0]), np.sqrt(0.5), atol=1e-4)
    np.testing.assert_allclose(found.value, -0.25, atol=1e-7)


def test_flat_directions_stay() -> None:
    def flat(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        return float(x[0] ** 2), np.array([2 * x[0], 0.0]), np.diag([2.0, 0.0]), 0.0

    found = descend(in_two(flat), np.array([3.0, 5.0]))
    np.testing.assert_allclose(found.x, [0.0, 5.0], atol=1e-6)


def log_barrier(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    if x[0] <= 0:
        raise NumericalError("outside")
    return float(x[0] - np.log(x[0])), 1 - 1 / x, np.array([[1 / x[0] ** 2]]), 0.0


def test_places_without_a_value_are_avoided() -> None:
    found = descend(in_two(log_barrier), np.array([30.0]))
    np.testing.assert_allclose(found.x, 1.0, atol=1e-3)


def test_a_start_without_a_value_is_an_error() -> None:
    with pytest.raises(NumericalError, match="not defined where"):
        descend(in_two(log_barrier), np.array([-1.0]))


def test_no_minimum_is_an_error() -> None:
    def slope(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        return float(-x[0]), np.array([-1.0]), np.array([[0.0]]), 0.0

    with pytest.raises(NumericalError, match="not found"):
        descend(in_two(slope), np.zeros(1))


def test_what_the_function_raises_comes_through() -> None:
    def broken(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        raise KeyError("a fault of its own")

    with pytest.raises(KeyError, match="a fault of its own"):
        descend(in_two(broken), np.zeros(1))


@pytest.mark.parametrize("model", [np.diag([5.0, 3.0]), np.diag([-5.0, 3.0])])
def test_a_hessian_that_is_far_off_is_corrected(model: np.ndarray) -> None:
    calls = 0

    def flat(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        nonlocal calls
        calls += 1
        true = np.diag([0.05, 3.0])
        return float(0.5 * x @ true @ x), true @ x, model, 0.0

    found = descend(in_two(flat), np.array([2.0, -1.0]))
    np.testing.assert_allclose(found.x, 0.0, atol=1e-2)
    assert calls < 15


@dataclass(frozen=True)
class Place:
    """A function with its derivatives at one place."""

    value: float
    gradient: np.ndarray
    hessian: np.ndarray


def at_once(function: Whole) -> Callable[[np.ndarray], Place]:
    return lambda x: Place(*function(x)[:3])


@pytest.mark.parametrize("exact", [True, False])
def test_value_and_derivatives_at_once(exact: bool) -> None:
    found = minimise(at_once(rosenbrock), np.array([-1.2, 1.0]), exact=exact)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-5)
    assert found.converged
    assert found.point.value == rosenbrock(found.x)[0]  # the point is that of x, not of a step that was refused
    np.testing.assert_array_equal(found.point.gradient, rosenbrock(found.x)[1])
    values = np.array([value for _, value, _, _ in found.log])
    assert found.point.value == values.min()
    assert all(len(x) == 2 for x, *_ in found.log)


def test_nothing_to_minimise() -> None:
    found = minimise(lambda x: Place(3.0, x, np.empty((0, 0))), np.empty(0))
    assert (found.point.value, found.converged, len(found.log)) == (3.0, True, 1)


def test_the_functions_own_error_at_the_start() -> None:
    with pytest.raises(NumericalError, match="outside"):
        minimise(at_once(log_barrier), np.array([-1.0]))


def test_places_without_a_value_are_infinite_in_the_log() -> None:
    def steep(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        value, gradient, _, figure = log_barrier(x)
        return value, gradient, np.array([[1e-2]]), figure  # the model's step leads outside

    found = minimise(at_once(steep), np.array([4.0]), exact=False)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-4)
    assert np.inf in [value for _, value, _, _ in found.log]


def test_no_evaluation_is_spent_on_what_rounding_hides() -> None:
    noise = np.random.default_rng(0)

    def unidentified(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        """The second element does nothing, but for the rounding of its derivatives."""
        gradient = np.array([x[0], 1e-13 * noise.normal()])
        return float(500.0 + 0.5 * x[0] ** 2), gradient, np.diag([1.0, 1e-14]), 0.0

    found = minimise(at_once(unidentified), np.array([2.0, 5.0]))
    assert found.converged
    assert len(found.log) < 6
    np.testing.assert_allclose(found.x, [0.0, 5.0], atol=1e-6)
    flat = minimise(lambda x: Place(532.0, np.array([-4.5e-13]), np.zeros((1, 1))), np.ones(1))
    assert flat.converged
    assert len(flat.log) <= 2


def test_the_last_step_is_taken_though_its_promise_is_rounding() -> None:
    def valley(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        return float(1e5 + np.cosh(x[0]) - 1.0), np.sinh(x), np.cosh(x)[:, None], 0.0

    # Newton's steps lead to 7e-5, which promises 3e-9, and from there to 1e-13
    found = minimise(at_once(valley), np.array([0.06]))
    assert found.converged
    np.testing.assert_allclose(found.x, 0.0, atol=1e-9)


@dataclass(frozen=True)
class Noisy:
    """A quadratic whose value, not whose gradient, is rounded; `wrong` turns the gradient."""

    x: np.ndarray
    size: float
    wrong: float = 1.0

    @property
    def value(self) -> float:
        return float(self.x @ self.x) + self.size * np.sin(1e16 * float(self.x.sum()))

    @property
    def gradient(self) -> np.ndarray:
        return self.wrong * (2.0 * self.x + 1e-4 * np.cos(1e9 * self.x))

    @property
    def hessian(self) -> np.ndarray:
        return 2.0 * np.eye(len(self.x))


def test_an_end_that_rounding_makes_is_told_from_a_wrong_gradient() -> None:
    found = minimise(lambda x: Noisy(x, 1e-6), np.array([1.0, -2.0]))
    assert found.converged
    np.testing.assert_allclose(found.x, 0.0, atol=2e-3)
    assert not minimise(lambda x: Noisy(x, 1e-2, -1.0), np.array([1.0, -2.0])).converged
