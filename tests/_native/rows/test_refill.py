"""Other weights for the same rows: the same bits as making the products anew, in a layout's order."""

from dataclasses import replace

import numpy as np
import pytest

from fastlmm_core.core import Control, Term, plan
from fastlmm_core.core.crossprod import DesignProducts
from kernel_oracle import Dense, problem

MODELS = [
    pytest.param((11,), (1,), id="one scalar"),
    pytest.param((9,), (3,), id="one cubic"),
    pytest.param((13, 7), (1, 1), id="crossed"),
    pytest.param((11, 6), (3, 1), id="slopes lead"),
    pytest.param((25, 7), (1, 2), id="slopes in the tail"),
    pytest.param((30, 6, 5, 4), (2, 1, 3, 2), id="mixed blocks"),
]
models = pytest.mark.parametrize(("levels", "widths"), MODELS)
engines = pytest.mark.parametrize("engine", ["dense", "sparse", "cholmod"])


def laid_out(levels, widths, engine, ordered=False, threads=1):
    """Products without weights, their layout, and the places of their rows."""
    given = problem(levels, widths, p=0)
    if ordered:  # rows in the order of the leading factor's levels
        lead = given.model().products.codes[0]
        order = np.argsort(lead, kind="stable")
        terms = tuple(Term(t.codes[order], None if t.z is None else t.z[order]) for t in given.terms)
        given = replace(given, y=given.y[order], X=given.X[order], terms=terms)
    model = given.model(engine=engine)
    layout = plan(model.products, Control(engine, threads=1))
    return given, model, replace(layout, threads=threads)


def numbers(values):
    return values.blocks, values.cells, values.tail


@models
@engines
@pytest.mark.parametrize("ordered", [False, True], ids=["", "ordered"])
def test_unit_weights_give_the_products_bits(levels, widths, engine, ordered):
    given, model, layout = laid_out(levels, widths, engine, ordered)
    rows = layout.rows(model.products)
    expected = layout.values(model.products.cross(given.y))
    got = rows.refill(np.ones(rows.n))
    for a, b in zip(numbers(got), numbers(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert got.total_weight == expected.total_weight == rows.n
    assert not got.even


@models
@engines
def test_other_weights(levels, widths, engine):
    """Refilled twice, so that nothing of the first weights is left; then against kernels that make cells anew."""
    given, model, layout = laid_out(levels, widths, engine)
    rng = np.random.default_rng(1)
    first, w = rng.uniform(0.1, 5.0, (2, len(given.y)))
    rows = layout.rows(model.products)
    before = rows.values.version
    assert rows.refill(first) is rows.refill(w) is rows.values
    assert rows.values.version == before + 2
    dense = Dense(model, given.y, layout)
    products = dense.Z.T @ (w[:, None] * dense.Z)
    q, l = layout.groups[0].n_levels, layout.groups[0].n_columns
    for i in range(q if layout.leads else 0):
        here = slice(i * l, (i + 1) * l)
        np.testing.assert_allclose(rows.values.blocks[i], products[here, here], rtol=1e-12, atol=1e-13)
        lo, hi = layout.arrays["ptr"][i : i + 2]
        columns = layout.arrays["idx"][lo:hi]
        strips = rows.values.cells[l * lo : l * hi].reshape(l, -1)
        np.testing.assert_allclose(strips, products[here, dense.lead_size + columns], rtol=1e-12, atol=1e-13)
    for j in range(layout.tail.m):
        at = slice(*layout.arrays["a_ptr"][j : j + 2])
        expected = products[dense.lead_size + j, dense.lead_size + layout.arrays["a_idx"][at]]
        np.testing.assert_allclose(rows.values.tail[at], expected, rtol=1e-12, atol=1e-13)
    assert rows.values.total_weight == pytest.approx(w.sum(), rel=1e-14)


@models
@engines
def test_sums_and_products(levels, widths, engine):
    given, model, layout = laid_out(levels, widths, engine)
    rows, dense = layout.rows(model.products), Dense(model, given.y, layout)
    rng = np.random.default_rng(2)
    D, b = rng.normal(size=(3, rows.n)), rng.normal(size=(2, dense.Z.shape[1]))
    np.testing.assert_allclose(np.hstack(rows.sums(D)), D @ dense.Z, atol=1e-12)
    lead, tail = b[:, : dense.lead_size].copy(), b[:, dense.lead_size :].copy()
    np.testing.assert_allclose(rows.products(lead, tail), b @ dense.Z.T, atol=1e-12)


def test_threads_do_not_change_a_bit():
    answers = []
    for threads in (1, 2, 3):
        _, model, layout = laid_out((400, 60, 40), (2, 3, 1), "dense", threads=threads)
        rows = layout.rows(model.products)
        w = np.random.default_rng(4).uniform(size=rows.n)
        answers.append([*numbers(rows.refill(w)), *rows.sums(w[None])])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_rows_that_do_not_match_are_refused():
    _, model, layout = laid_out((13, 7), (1, 1), "dense")
    rows = layout.rows(model.products)
    with pytest.raises(ValueError, match="89 weights for 90 rows"):
        rows.refill(np.ones(89))
    with pytest.raises(ValueError, match="89 rows, not 90"):
        rows.sums(np.ones((1, 89)))
    with pytest.raises(ValueError, match="do not belong"):
        rows.products(np.ones((1, 13)), np.ones((1, 6)))


def test_levels_without_rows():
    """They have no cell, and a block of zeros."""
    rng = np.random.default_rng(0)
    terms = [Term(rng.integers(0, 8, 60), n_levels=12), Term(rng.integers(0, 3, 60), n_levels=5)]
    design = DesignProducts(np.empty((60, 0)), terms)
    rows = plan(design).rows(design)
    values = rows.refill(np.full(60, 0.5))
    assert values.blocks.sum() == pytest.approx(30.0)
    assert values.cells.sum() == pytest.approx(30.0)
    assert values.tail.sum() == pytest.approx(30.0)
