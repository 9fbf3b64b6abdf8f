"""The studentized range against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastlmm_core.inference.studentized_range import range_quantile, range_sf


@pytest.mark.parametrize("k", [2, 3, 12])
@pytest.mark.parametrize("df", [1.0, 1.5, 3.3, 20.0, 4000.0, np.inf])
def test_studentized_range(k: int, df: float) -> None:
    q = np.array([0.5, 3.0, 6.0])
    np.testing.assert_allclose(
        range_sf(q, k, np.full(3, df)), [stats.studentized_range.sf(x, k, df) for x in q], atol=1e-10
    )
    if df > 1:
        assert range_sf(range_quantile(0.95, k, np.array([df])), k, np.array([df]))[0] == pytest.approx(0.05, abs=1e-10)


def test_quantiles_of_many_degrees_of_freedom() -> None:
    df = np.linspace(3.5, 90.0, 60)
    exact = np.concatenate([range_quantile(0.95, 5, df[i : i + 1]) for i in range(60)])
    np.testing.assert_allclose(range_quantile(0.95, 5, df), exact, rtol=1e-8)
