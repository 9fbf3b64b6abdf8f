"""A coefficient held fixed: the deviance against its own differences, and against the model without it."""

from __future__ import annotations

import numpy as np
import pytest

import problems


@pytest.mark.parametrize("engine", ["dense", "sparse", "cholmod"])
@pytest.mark.parametrize("name", ["slope", "crossed_weights", "nested"])
def test_slope_and_minimum(name, engine):
    objective = problems.build(name).objective(False, engine)
    cross, theta = objective.cross, objective.to_conditioned(objective.start)
    a = np.linalg.inv(cross.conditioning.r[: cross.rank, : cross.rank])[-1]
    held = objective.held(a)
    free = objective.newton.minimise(theta)
    at_best = held.estimate(free[0])
    value, slope, found = held.solve(at_best, theta)
    assert abs(value - free[1]) < 1e-6
    assert abs(slope) < 1e-3 * max(1.0, abs(value))
    spread = abs(at_best) + 1.0
    for g0 in (at_best - 0.1 * spread, at_best + 0.3 * spread):
        h = 1e-4 * spread
        value, slope, at = held.solve(g0, found)
        difference = (held.solve(g0 + h, at)[0] - held.solve(g0 - h, at)[0]) / (2 * h)
        assert value > free[1]
        assert abs(slope - difference) < 1e-4 * max(1.0, abs(slope))


def test_holding_a_coefficient_at_zero_leaves_it_out():
    problem = problems.build("slope")
    objective = problem.objective(False, "auto")
    cross = objective.cross
    c, p = cross.conditioning, cross.rank
    inverse = np.linalg.inv(c.r[:p, :p])
    # beta_j = shift + (r^-1 r_y)_j + y_scale a'gamma, zero
    origin = c.shift[p - 1] + inverse[p - 1] @ c.r[:p, p]
    value = objective.held(inverse[p - 1]).solve(-origin / c.y_scale, objective.to_conditioned(objective.start))[0]
    assert list(c.keep) == list(range(p))
    smaller = problem.but(X=problem.X[:, : p - 1]).fit(False)
    assert abs(value - smaller.criterion) < 1e-7 * abs(value)
