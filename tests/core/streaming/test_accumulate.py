"""Rows that come in batches: any cut, any order, any tree of merges gives the fit of the rows in memory."""

import errno
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlmm_core._native.iterative import row_form
from fastlmm_core._native.rows.crossprod import add_level_blocks, level_blocks, mirror_blocks
from fastlmm_core.core import Accumulator, BatchTerm, Control, Model, StreamedModel, Term, rows_at_hand, spool
from fastlmm_core.core.streaming import row_store
from fastlmm_core.core.streaming.row_store import RowStore
from fastlmm_core.errors import DataError, MemoryLimitError, ModelError, NumericalError, StreamedError, UnitError

MODELS = {
    "one factor": ([BatchTerm(0, 2)], False),
    "weights": ([BatchTerm(0, 2)], True),
    "no intercept": ([BatchTerm(0, 1, ones=False)], False),
    "independent": ([BatchTerm(0), BatchTerm(0, 1, ones=False)], False),
    "crossed": ([BatchTerm(0, 2), BatchTerm(1)], False),
    "crossed slopes": ([BatchTerm(0, 2), BatchTerm(1, 2, cov="diag")], True),
    "nested": ([BatchTerm(0), BatchTerm(2)], False),
    "three": ([BatchTerm(0), BatchTerm(1), BatchTerm(2)], True),
}


def columns_of(term, x):
    if term.n_columns == 1 and term.ones:
        return None
    return np.column_stack([np.ones(len(x)), x]) if term.n_columns == 2 else x[:, None]


class Rows:
    """Rows of a model and how to pass some of them on."""

    def __init__(self, name, n=600, seed=0):
        rng = np.random.default_rng(seed)
        self.terms, weighted = MODELS[name]
        g, h = rng.integers(0, 30, n), rng.integers(0, 12, n)
        x = 50.0 + rng.normal(size=n)
        used = sorted({t.factor for t in self.terms})
        self.codes = [c for k, c in enumerate([g, h, g % 7]) if k in used]
        self.terms = [BatchTerm(used.index(t.factor), t.n_columns, t.ones, t.cov) for t in self.terms]
        f = rng.integers(0, 3, n)
        self.X = np.column_stack([np.ones(n), x, f == 1, f == 2]).astype(float)
        effects = rng.normal(size=30)[g] + 0.5 * rng.normal(size=30)[g] * (x - 50.0) + 0.7 * rng.normal(size=12)[h]
        self.y = 1000.0 + effects + 0.8 * rng.normal(size=7)[g % 7] + rng.normal(size=n)
        self.z = [columns_of(t, x) for t in self.terms]
        self.weights = rng.uniform(0.5, 2.0, n) if weighted else None
        self.offset = rng.normal(size=n)

    def model(self, reml=True):
        terms = [Term(self.codes[t.factor], z, t.cov) for t, z in zip(self.terms, self.z, strict=True)]
        return Model(self.X, terms, weights=self.weights, offset=self.offset, reml=reml).fit(self.y)

    def empty(self):
        return Accumulator(self.terms, 4, 0)

    def add(self, total, rows, maps=None):
        codes = [c[rows] if maps is None else m[c[rows]] for c, m in zip(self.codes, maps or self.codes, strict=True)]
        total.add(
            self.y[rows],
            self.X[rows],
            codes,
            [None if z is None else z[rows] for z in self.z],
            weights=None if self.weights is None else self.weights[rows],
            offset=self.offset[rows],
        )
        return total


def assert_same_fit(found, expected):
    np.testing.assert_allclose(found.theta, expected.theta, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.criterion, expected.criterion, rtol=1e-11)
    np.testing.assert_allclose(found.beta, expected.beta, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-10)
    np.testing.assert_allclose(
        found.cov_beta, expected.cov_beta, rtol=1e-7, atol=1e-10 * np.nanmax(np.abs(expected.cov_beta))
    )
    for a, b in zip(found.b, expected.b, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


EXPECTED = {}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", MODELS)
def test_any_cut_order_and_tree_is_the_fit_in_memory(name, data):
    rows = Rows(name)
    if name not in EXPECTED:
        EXPECTED[name] = rows.model()
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(600)
    cuts = sorted(data.draw(st.lists(st.integers(1, 599), max_size=6)))
    parts = np.split(order, cuts)
    totals = [rows.add(rows.empty(), part) for part in parts]
    while len(totals) > 1:
        a = totals.pop(data.draw(st.integers(0, len(totals) - 1)))
        totals[-1].merge(pickle.loads(pickle.dumps(a)))
    assert_same_fit(StreamedModel(totals[0]).fit(), EXPECTED[name])


@pytest.mark.parametrize("name", ["crossed", "crossed slopes", "nested", "three"])
def test_rows_collapse_into_cells(name, monkeypatch):
    monkeypatch.setattr(row_store, "FIRST_LOOK", 100)
    monkeypatch.setattr(row_store, "SAMPLE", 1)
    monkeypatch.setattr(row_store, "COLLAPSE", 0.1)
    rows = Rows(name)
    total, other = rows.empty(), rows.empty()
    for k, part in enumerate(np.array_split(np.arange(600), 9)):
        rows.add(total if k % 2 else other, part)
    assert total.store.collapsed
    assert not total.store.rows
    total.merge(other)
    model = StreamedModel(total)
    assert_same_fit(model.fit(), rows.model())
    # two factors without columns: a cell is a row of its own weight
    assert model.products.has_rows == (name == "nested")
    if model.products.has_rows:
        cells = len(np.unique(np.column_stack(rows.codes), axis=0))
        assert model.products.at_hand.n == cells < 600
        ((_, _, weights),) = model.products.at_hand.pieces()
        assert weights.sum() == pytest.approx(600)
    else:
        with pytest.raises(StreamedError, match="streamed"):
            _ = model.products.at_hand


@pytest.mark.parametrize("collapsed", [False, True])
def test_codes_of_another_coding_are_merged_by_their_places(collapsed):
    rows, rng = Rows("crossed slopes"), np.random.default_rng(1)
    maps = [rng.permutation(len(np.unique(c))) for c in rows.codes]
    first, second = rows.add(rows.empty(), np.arange(250)), rows.add(rows.empty(), np.arange(250, 600), maps)
    if collapsed:
        second.store.collapse()
    first.merge(second, [np.argsort(m) for m in maps])
    orders = [rng.permutation(q) for q in first.n_levels]
    found, expected = StreamedModel(first, orders).fit(), rows.model()
    first.renumber(orders)
    for one in (found, StreamedModel(first).fit()):
        for b, mine, term in zip(one.b, expected.b, rows.terms, strict=True):
            np.testing.assert_allclose(b[orders[term.factor]], mine, rtol=1e-6, atol=1e-7)


def test_maximum_likelihood_conditional_variances_and_the_criterion():
    rows = Rows("crossed")
    model = StreamedModel(rows.add(rows.empty(), np.arange(600)), reml=False)
    found, expected = model.fit(), rows.model(reml=False)
    assert_same_fit(found, expected)
    for a, b in zip(found.cond_var(), expected.cond_var(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    theta = expected.theta * 1.3
    np.testing.assert_allclose(found.objective()(theta), expected.objective()(theta), rtol=1e-11)
    np.testing.assert_allclose(found.objective().gradient(theta), expected.objective().gradient(theta), rtol=1e-6)
    with pytest.raises(StreamedError, match="predict"):
        _ = found.fitted
    assert pickle.loads(pickle.dumps(found)).sigma == found.sigma


def test_dependent_columns_are_set_aside():
    rows = Rows("one factor")
    rows.X = np.column_stack([rows.X, 1.0 - rows.X[:, 2] - rows.X[:, 3]])
    total = Accumulator(rows.terms, 5, 0)
    for part in np.array_split(np.arange(600), 4):
        rows.add(total, part)
    found, expected = StreamedModel(total).fit(), rows.model()
    assert np.isnan(found.beta[4])
    assert_same_fit(found, expected)
    rng = np.random.default_rng(0)
    for L in (np.eye(5), rng.normal(size=(3, 5))):
        assert (found.estimable(L) == expected.estimable(L)).all()


def test_what_the_criterion_does_not_see_is_held():
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(3), 30)
    y = rng.normal(size=90)
    X = np.column_stack([np.ones(90), g == 1, g == 2]).astype(float)
    total = Accumulator([BatchTerm(0)], 3, 0)
    for part in np.array_split(np.arange(90), 3):
        total.add(y[part], X[part], [g[part]])
    found, expected = StreamedModel(total).fit(), Model(X, [Term(g)]).fit(y)
    assert found.unidentified is not None
    assert (found.unidentified.held == expected.unidentified.held).all()
    np.testing.assert_allclose(found.beta, expected.beta)


def test_what_sums_have_too_few_digits_for_is_refused():
    rows = Rows("one factor")
    rows.X[:, 3] = rows.X[:, 1] + 1e-8 * rows.X[:, 3]
    with pytest.raises(NumericalError, match="column 3 of X differs from a combination"):
        StreamedModel(rows.add(rows.empty(), np.arange(600)))
    rows = Rows("one factor")
    rows.y, rows.offset = rows.X @ [1.0, 2.0, 3.0, 4.0] + 1e-7 * rows.y, np.zeros(600)
    with pytest.raises(NumericalError, match="of the response"):
        StreamedModel(rows.add(rows.empty(), np.arange(600)))
    rows.y = rows.X @ [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ModelError, match="nothing is left"):
        StreamedModel(rows.add(rows.empty(), np.arange(600)))
    rows = Rows("one factor")
    rows.y = 1e3 * rows.codes[0] + 1e-3 * np.random.default_rng(0).normal(size=600)
    rows.offset = np.zeros(600)
    with pytest.raises(NumericalError, match="in memory"):
        StreamedModel(rows.add(rows.empty(), np.arange(600))).fit()


def test_what_is_wrong_with_a_batch_is_named():
    y, X, g = np.arange(4.0), np.ones((4, 1)), np.array([0, 1, 0, 1])
    total = Accumulator([BatchTerm(0)], 1, 0)
    total.add(np.empty(0), np.empty((0, 1)), [np.empty(0, int)])
    with pytest.raises(ModelError, match="no rows"):
        total.finish()
    cases = [
        ((y[:3], X, [g]), {}, DataError, "X has 1 columns|shape"),
        ((y, 2 * X, [g]), {}, DataError, "not one in every row"),
        ((y, X, [g, g]), {}, DataError, "2 factors"),
        ((y, X, [g[:2]]), {}, DataError, "codes of factor 0"),
        ((y, X, [g - 1]), {}, DataError, "outside"),
        ((y, X, [g], [X, X]), {}, DataError, "2 terms"),
        ((np.array([0, 1, np.nan, 2]), X, [g]), {}, DataError, "not finite"),
        ((y, X, [g]), {"weights": np.zeros(4)}, DataError, "positive"),
        ((y, X, [g]), {"offset": np.zeros(3)}, DataError, "offset"),
        ((1e200 * y, X, [g]), {}, UnitError, "y has values"),
    ]
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            total.add(*arguments, **options)
    total.add(y, X, [g])
    with pytest.raises(DataError, match="weights"):
        total.add(y, X, [g], weights=np.ones(4))
    with pytest.raises(ModelError, match="different terms"):
        total.merge(Accumulator([BatchTerm(0, 2)], 1, 0))


def test_blocks_of_parts_are_the_blocks_of_the_whole_to_the_bit():
    rng = np.random.default_rng(0)
    codes, z, w = rng.integers(0, 9, 300).astype(np.int32), rng.normal(size=(300, 3)), rng.uniform(size=300)
    for columns in (z, None):
        l = 1 if columns is None else 3
        out = np.zeros((9, l, l))
        for part in np.array_split(np.arange(300), 5):
            add_level_blocks(codes[part], None if columns is None else columns[part], w[part], out)
        mirror_blocks(out)
        assert (out == level_blocks(codes, 9, columns, w)).all()
        full = np.ones((300, 1)) if columns is None else columns
        dense = np.stack([full[codes == j].T @ (full[codes == j] * w[codes == j, None]) for j in range(9)])
        np.testing.assert_allclose(out, dense, rtol=1e-12)
    with pytest.raises(ValueError, match="do not match"):
        add_level_blocks(codes, z, w, np.zeros((9, 2, 2)))


@pytest.mark.parametrize(("levels", "collapses"), [(40, True), (3000, False)])
def test_rows_collapse_where_that_saves_memory(levels, collapses, monkeypatch):
    monkeypatch.setattr(row_store, "FIRST_LOOK", 15_000)
    rng, store = np.random.default_rng(0), RowStore([1, 1])
    for _ in range(4):
        store.add([rng.integers(0, levels, 5000).astype(np.int32) for _ in range(2)], [None, None], None)
    assert store.collapsed == collapses
    assert (len(store.rows) == 0) == collapses


def test_cells_are_dense_cross_products():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 200).astype(np.int32), rng.integers(0, 5, 200).astype(np.int32)
    z, w = rng.normal(size=(200, 2)), rng.uniform(size=200)
    expected = np.zeros((6, 5, 2, 1))
    for i in range(200):
        expected[a[i], b[i], :, 0] += w[i] * z[i]
    for collapsed in (False, True):
        store = RowStore([2, 1])
        for part in np.array_split(np.arange(200), 7):
            store.add([a[part], b[part]], [z[part], None], w[part])
        if collapsed:
            store.collapse()
        orders = [np.arange(6, dtype=np.int32), np.arange(5, dtype=np.int32)]
        for g, h in ((0, 1), (1, 0)):
            ptr, idx, val = store.pair(g, h, orders, [6, 5])
            dense = np.zeros((6, 5, 2, 1)) if g == 0 else np.zeros((5, 6, 1, 2))
            for level in range(len(ptr) - 1):
                for k in range(ptr[level], ptr[level + 1]):
                    dense[level, idx[k]] += val[k]
            np.testing.assert_allclose(dense, expected if g == 0 else expected.transpose(1, 0, 3, 2), atol=1e-12)


@pytest.mark.parametrize("engine", ["iterative", "sparse"])
@pytest.mark.parametrize("name", ["crossed slopes", "nested", "three"])
def test_rows_in_files_give_the_bits_of_rows_in_memory(name, engine, monkeypatch):
    for module in (rows_at_hand, spool, row_store):
        monkeypatch.setattr(module, "PIECE", 16_384)
    monkeypatch.setattr(row_form, "WINDOW", 1 << 14)
    rows, fits = Rows(name, n=40_000), []
    for memory in (None, 400_000):
        total, part = (Accumulator(rows.terms, 4, 0, keep_rows=True, memory=memory) for _ in range(2))
        for k, batch in enumerate(np.array_split(np.arange(40_000), 9)):
            rows.add(part if k % 4 == 0 else total, batch)
        total.merge(part)
        assert total.store.rows.on_disk == (memory is not None)
        orders = [np.random.default_rng(3).permutation(q) for q in total.n_levels]
        fits.append(StreamedModel(total, orders, control=Control(engine=engine)).fit())
    for name in ("theta", "beta", "criterion", "sigma", "cov_beta", "b"):
        one, other = (getattr(fit, name) for fit in fits)
        for a, b in zip(one, other, strict=True) if name == "b" else [(one, other)]:
            np.testing.assert_array_equal(a, b)


def test_batches_may_come_in_the_same_arrays():
    rows = Rows("three")
    one, same = (Accumulator(rows.terms, n_fixed=4, intercept=0) for _ in range(2))
    codes, w = [np.empty(100, np.int32) for _ in rows.codes], np.empty(100)
    for part in np.array_split(np.arange(600), 6):
        one.add(rows.y[part], rows.X[part], [c[part] for c in rows.codes], weights=rows.weights[part])
        for buffer, c in zip([*codes, w], [*rows.codes, rows.weights], strict=True):
            buffer[:] = c[part]
        same.add(rows.y[part], rows.X[part], codes, weights=w)
    assert StreamedModel(same).fit().criterion == StreamedModel(one).fit().criterion


def test_a_merge_that_is_refused_changes_nothing():
    rows = Rows("three")
    first, other, whole = (Accumulator(rows.terms, n_fixed=4, intercept=0) for _ in range(3))
    for part, own in ((slice(0, 300), first), (slice(300, 600), other)):
        some = rows.y[part], rows.X[part], [c[part] for c in rows.codes]
        own.add(*some, weights=rows.weights[part])
        whole.add(*some, weights=rows.weights[part])
    with pytest.raises(DataError, match="3 places for"):
        first.merge(other, [None, None, np.arange(3)])
    first.merge(other)
    np.testing.assert_allclose(StreamedModel(first).fit().criterion, StreamedModel(whole).fit().criterion, rtol=1e-11)


def test_a_merge_that_the_disk_has_no_room_for_changes_nothing(monkeypatch):
    rows, put = Rows("three"), spool.put
    first, other, whole = (Accumulator(rows.terms, n_fixed=4, intercept=0, memory=1) for _ in range(3))
    for part, own in ((slice(0, 300), first), (slice(300, 600), other)):
        for total in (own, whole):
            rows.add(total, part)

    def full(file, at, data):
        if at:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(file, at, data)

    monkeypatch.setattr(spool, "put", full)
    with pytest.raises(MemoryLimitError, match="No space left"):
        first.merge(other)
    monkeypatch.setattr(spool, "put", put)
    first.merge(other)
    assert first.n == len(first.store.rows) == 600
    np.testing.assert_allclose(StreamedModel(first).fit().criterion, StreamedModel(whole).fit().criterion, rtol=1e-11)
