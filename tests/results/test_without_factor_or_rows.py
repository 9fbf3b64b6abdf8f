"""Every public name of a result without a factor of the random effects, without rows, or both works or is refused.

A refusal is one of the package's own errors, and its message says what to do instead.
"""

import inspect
import re
import warnings

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, LmerResult, lmer, stream
from fastlmm_core.errors import FastLMMError, FastLMMWarning, SpellingError

pa = pytest.importorskip("pyarrow")

N = 900
FORMULA = "y ~ x + C(c, levels=['a', 'b', 'c']) + (1 | g) + (1 | h)"
ITERATIVE = Control(engine="iterative", threads=1)

WAY_OUT = re.compile(r"\b(fit|pass|leave|use|call|predict|say|name|give|add|write|ask)\b", re.IGNORECASE)


def table():
    rng = np.random.default_rng(0)
    g, h = rng.integers(0, 40, N), rng.integers(0, 30, N)
    x, c = rng.normal(size=N), rng.choice(["a", "b", "c"], N)
    y = 1.0 + x + rng.normal(size=40)[g] + rng.normal(size=30)[h] + rng.normal(size=N)
    return pd.DataFrame({"y": y, "x": x, "g": g, "h": h, "c": c})


@pytest.fixture(scope="module")
def results():
    data = table()
    rows = pa.Table.from_pandas(data)
    return {
        "iterative": lmer(FORMULA, data, control=ITERATIVE),
        "streamed": lmer(FORMULA, stream(rows)),
        "both": lmer(FORMULA, stream(rows), control=ITERATIVE),
    }


def arguments(name, result, folder):
    """What a method cannot do without."""
    data = table()
    given = {
        "bootstrap": ((), {"n": 2, "seed": 1}),
        "compare": ((result,), {}),
        "emmeans": (("c",), {}),
        "emtrends": (("x",), {}),
        "f_test": (("x = 0",), {}),
        "influence": (("g",), {}),
        "keep_data": ((data,), {}),
        "marginal_cov": ((3,), {}),
        "predict": ((data.head(),), {}),
        "refit": ((data["y"].to_numpy(),), {}),
        "save": ((folder / f"{name}.fit",), {}),
        "simulate": ((2,), {"seed": 1}),
        "t_test": (("x = 0",), {}),
        "update": (("~ . - x",), {}),
    }
    return given.get(name, ((), {}))


NAMES = sorted(name for name in dir(LmerResult) if not name.startswith("_"))


def outcome(result, name, folder):
    """What a public name gives, or the package's error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastLMMWarning)
        try:
            value = getattr(result, name)
            if inspect.ismethod(value):
                positional, named = arguments(name, result, folder)
                value = value(*positional, **named)
        except FastLMMError as error:
            return error
    return value


@pytest.mark.parametrize("kind", ["iterative", "streamed", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_works_or_is_refused_with_a_way_out(results, kind, name, tmp_path):
    found = outcome(results[kind], name, tmp_path)
    if isinstance(found, FastLMMError):
        message = str(found)
        assert not isinstance(found, SpellingError), message
        assert WAY_OUT.search(message), message
        assert "\n" not in message
    elif isinstance(found, pd.DataFrame) and len(found):
        assert not found.select_dtypes("number").isna().all(axis=None)


@pytest.mark.parametrize("kind", ["streamed", "both"])
def test_what_needs_no_rows_is_that_of_the_table(results, kind):
    control = ITERATIVE if kind == "both" else None
    there, here = lmer(FORMULA, table(), control=control), results[kind]
    for name in ("theta", "criterion", "cov_params"):
        value = getattr(here, name)
        expected = getattr(there, name)
        if callable(value):
            value, expected = value(), expected()
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-12)
    pd.testing.assert_frame_equal(here.coef_table(), there.coef_table(), rtol=1e-7)
    np.testing.assert_allclose(here.predict(table()), there.predict(table()), rtol=1e-8)
