"""Rows on a cluster: two processes, one of which dies on the way."""

import os

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal, assert_series_equal

from dying import part_of
from fastlmm_core import dask as cluster
from fastlmm_core import lmer
from fastlmm_core.errors import DataError

dd = pytest.importorskip("dask.dataframe")  # an extra


def table(n=4000):
    rng = np.random.default_rng(0)
    g, h = rng.integers(0, 40, n), rng.integers(0, 15, n)
    data = pd.DataFrame({"g": [f"u{k}" for k in g], "h": h, "x": rng.normal(size=n), "f": rng.choice(["a", "b"], n)})
    data["y"] = rng.normal(size=40)[g] * (1 + data["x"]) + rng.normal(size=15)[h] + rng.normal(size=n)
    data.loc[[2, 3000], "y"] = np.nan
    return data


DATA = table()
FORMULAS = ["y ~ x + (x | g) + (1 | h)", "y ~ scale(x) + f + (1 | g)"]


def assert_same(found, expected):
    np.testing.assert_allclose(found.criterion, expected.criterion, rtol=1e-11)
    assert_series_equal(found.theta, expected.theta, rtol=1e-7)
    assert_series_equal(found.params, expected.params, rtol=1e-8, atol=1e-9)
    assert_frame_equal(found.ranef(), expected.ranef(), rtol=1e-5, atol=1e-7)
    assert found.n_missing == expected.n_missing


@pytest.mark.parametrize("formula", FORMULAS)
def test_partitions_are_the_table(formula):
    import dask

    frame = dd.from_pandas(DATA, npartitions=7)
    with dask.config.set(scheduler="synchronous"):
        assert_same(cluster.lmer(formula, frame, split_every=2), lmer(formula, DATA))
        assert_same(
            cluster.lmer(formula, frame.partitions[0], reml=False),
            lmer(formula, frame.partitions[0].compute(), reml=False),
        )


def test_only_dask_frames():
    with pytest.raises(DataError, match="must be a Dask DataFrame, not DataFrame"):
        cluster.lmer(FORMULAS[0], DATA)


def test_a_worker_that_dies_loses_nothing(tmp_path):
    from distributed import Client, LocalCluster

    flag = str(tmp_path / "died")
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, memory_limit=0
        ) as local,
        Client(local),
    ):
        frame = dd.from_pandas(DATA, npartitions=4).map_partitions(part_of, flag, meta=DATA.head(0))
        recipe = cluster.prepare(FORMULAS[0], DATA)
        assert recipe.needs == []
        found = cluster.lmer(FORMULAS[0], frame)
        assert os.path.exists(flag)
    assert_same(found, lmer(FORMULAS[0], DATA))
