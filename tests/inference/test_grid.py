"""Rows of reference grids, and derivatives of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import ModelError, lmer


def test_trends_of_higher_degrees_are_taylors_coefficients() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"a": rng.choice(list("uvw"), 90), "x": rng.normal(3.0, 2.0, 90), "g": rng.integers(0, 12, 90)})
    data["y"] = rng.normal(size=90) + 0.3 * data["x"] + rng.normal(size=12)[data["g"]]
    fit = lmer("y ~ a * (x + I(x**2)) + (1 | g)", data)
    b = dict(zip(fit.fixef.index, fit.fixef.to_numpy(), strict=True))
    trends = fit.emtrends("x", "a", max_degree=3, at={"x": 0.5})
    frame = trends.to_frame()
    assert frame["degree"].tolist() == np.repeat(["linear", "quadratic", "cubic"], 3).tolist()
    second = [b["I(x ** 2)"] + b.get(f"a[T.{k}]:I(x ** 2)", 0.0) for k in "uvw"]
    first = [b["x"] + b.get(f"a[T.{k}]:x", 0.0) + s for k, s in zip("uvw", second, strict=True)]
    np.testing.assert_allclose(frame["estimate"], [*first, *second, 0.0, 0.0, 0.0], rtol=1e-6)
    assert len(trends.pairs()) == 9
    poly = lmer("y ~ a * poly(x, 2) + (1 | g)", data).emtrends("x", "a", max_degree=2, at={"x": 0.5}).to_frame()
    np.testing.assert_allclose(poly["estimate"], frame["estimate"][:6], rtol=1e-5)
    np.testing.assert_allclose(poly["df"], frame["df"][:6], rtol=1e-4)
    for arguments, words in (
        ({"variable": "x", "max_degree": 6}, "from 1 to 5"),
        ({"variable": "exp(x)", "max_degree": 2}, "by a column"),
    ):
        with pytest.raises(ModelError, match=words):
            fit.emtrends(**arguments)  # type: ignore[arg-type]


def test_an_offset_has_no_trends_of_higher_degrees() -> None:
    """Rounding of its differences was an estimate with a standard error of zero, and p was zero."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.normal(size=60), "o": 1000.0 + rng.normal(size=60), "g": np.repeat(np.arange(10), 6)})
    data["y"] = data["o"] + rng.normal(size=60)
    frame = lmer("y ~ x + offset(o) + (1 | g)", data).emtrends("x", "1", max_degree=5).to_frame()
    np.testing.assert_array_equal(frame["estimate"][1:], 0.0)
