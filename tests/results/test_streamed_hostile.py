"""Streams of rows that something is wrong with: one error that names the column, the batch and the count."""

import threading

import numpy as np
import pytest

from fastlmm_core import Control, lmer, stream
from fastlmm_core.errors import DataError, FormulaError, ModelError

pa = pytest.importorskip("pyarrow")

FORMULA = "y ~ x + (1 | g) + (1 | h)"


def batch(n=300, seed=0, **change):
    rng = np.random.default_rng(seed)
    g, h, x = rng.integers(0, 30, n), rng.integers(0, 20, n), rng.normal(size=n)
    rows = {"y": rng.normal(size=n) + 0.1 * g + x, "x": x, "g": g, "h": h, "w": rng.random(n) + 0.5}
    for name, value in change.items():
        rows[name] = value(rows.get(name)) if callable(value) else value
    return pa.RecordBatch.from_pydict({name: pa.array(v) for name, v in rows.items() if v is not None})


def put(value, count=3):
    """A column with some values replaced."""

    def change(column):
        out = column.astype(float)
        out[:count] = value
        return out

    return change


def nothing(column):
    return [None] * len(column)


@pytest.mark.parametrize(
    ("formula", "arguments", "expected"),
    [
        ("y ~ np.log(x) + (1 | g) + (1 | h)", {}, r"np.log\(x\): no value in \d+ rows where x has one"),
        ("np.log(y) ~ x + (1 | g) + (1 | h)", {}, r"np.log\(y\): no value in \d+ rows where y has one"),
        ("y ~ x + (np.sqrt(x) | g) + (1 | h)", {}, r"np.sqrt\(x\): no value in \d+ rows where x has one"),
        ("y ~ x + offset(np.log(x)) + (1 | g)", {}, r"the offset: no value in \d+ rows where x has one"),
        (FORMULA, {"offset": "np.log(x)"}, r"the offset: no value in \d+ rows where x has one"),
        (FORMULA, {"weights": "np.sqrt(x)"}, r"the weights: no value in \d+ rows where x has one"),
    ],
)
def test_values_that_are_undefined_are_told_from_missing_ones(formula, arguments, expected):
    with pytest.raises(DataError, match=expected):
        lmer(formula, iter([batch(), batch(seed=1)]), **arguments)


def test_rows_outside_of_a_subset_may_be_undefined():
    formula = "y ~ np.log(x) + (1 | g) + (1 | h)"
    fit = lmer(formula, iter([batch(), batch(seed=1)]), subset="x > 0")
    positive = sum(int((b.column("x").to_numpy() > 0).sum()) for b in (batch(), batch(seed=1)))
    assert fit.nobs == positive


@pytest.mark.parametrize("missing", [np.nan, None])
def test_missing_values_are_dropped_and_counted(missing):
    column = [missing, missing, *batch(seed=1).column("x").to_pylist()[2:]]
    fit = lmer(FORMULA, iter([batch(), batch(seed=1, x=column), batch(seed=2, g=nothing)]))
    assert fit.nobs == 598
    assert "302" in str(fit.summary())


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ({"x": put(np.inf)}, {}, r"batch 1: infinite or undefined values in the fixed part: x \(3 rows\)"),
        ({"y": put(-np.inf, 1)}, {}, "batch 1: the response y is infinite in 1 rows"),
        ({"w": put(np.inf, 2)}, {"weights": "w"}, "batch 1: weights are infinite in 2 rows"),
        ({"w": put(-1.0, 2)}, {"weights": "w"}, "batch 1: weights are negative in 2 rows"),
        ({"w": put(np.inf, 2)}, {"offset": "w"}, "batch 1: the offset is infinite in 2 rows"),
        ({"x": ["a"] * 300}, {}, "column 'x' holds text in batch 1, but numbers in the first part"),
        ({"y": [True] * 300}, {}, "column 'y' holds true and false in batch 1"),
        ({"g": ["a"] * 300}, {}, "column 'g' holds text in batch 1"),
        ({"g": put(2.5)}, {}, "the grouping column 'g' holds floats in batch 1, but whole numbers before"),
        ({"x": None}, {}, "batch 1 has no column 'x'"),
        ({"g": None}, {}, "batch 1 has no column 'g'"),
    ],
)
def test_a_later_batch_that_is_unsound_is_named(change, arguments, expected):
    with pytest.raises(DataError, match=expected):
        lmer(FORMULA, iter([batch(), batch(seed=1, **change)]), **arguments)


@pytest.mark.parametrize("place", [0, 1])
def test_columns_of_one_name(place):
    def twice(of):
        return pa.RecordBatch.from_arrays([*of.columns, of.column(1)], [*of.schema.names, "x"])

    batches = [batch(), batch(seed=1)]
    batches[place] = twice(batches[place])
    with pytest.raises(DataError, match="has 2 columns that are called 'x'"):
        lmer(FORMULA, iter(batches))
    names = [*batch().schema.names, "y2", "y2"]
    of = batch()  # those that the formula does not use may be anything
    unused = pa.RecordBatch.from_arrays([*of.columns, of.column(0), of.column(0)], names)
    assert lmer(FORMULA, iter([unused])).nobs == 300


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ({"x": nothing}, {}, "no row is left of 600: 600 have missing values"),
        ({"w": put(0.0, 300)}, {"weights": "w"}, "no row is left of 600: 600 have weight zero"),
        ({}, {"subset": "x > 100"}, "no row is left of 600: 600 are outside of subset='x > 100'"),
    ],
)
def test_why_no_row_is_left(change, arguments, expected):
    with pytest.raises(DataError, match=expected):
        lmer(FORMULA, iter([batch(**change), batch(seed=1, **change)]), **arguments)


def test_what_has_one_value_only():
    with pytest.raises(ModelError, match="the response is constant"):
        lmer(FORMULA, iter([batch(y=np.ones(300)), batch(y=np.ones(300))]))
    with pytest.raises(ModelError, match="more than one level: h has only 1"):
        lmer(FORMULA, iter([batch(h=np.ones(300, int)), batch(h=np.ones(300, int))]))


def test_empty_batches_are_nothing():
    whole = [batch(), batch(seed=1)]
    empty = batch().slice(0, 0)
    a, b = (lmer(FORMULA, iter(rows)) for rows in (whole, [empty, whole[0], empty, whole[1], empty]))
    assert a.criterion == b.criterion
    with pytest.raises(DataError, match="has no rows"):
        lmer(FORMULA, iter([empty, empty]))


def test_an_iterator_gives_its_rows_once():
    rows = stream(iter([batch(), batch(seed=1)]))
    assert lmer(FORMULA, rows).nobs == 600
    with pytest.raises(DataError, match="an iterator gives them once"):
        lmer(FORMULA, rows)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the disk went away")])
def test_what_stops_a_pass_is_passed_on_and_the_folder_holds_what_was_finished(tmp_path, error):
    pq = pytest.importorskip("pyarrow.parquet")
    for k in range(3):
        pq.write_table(pa.Table.from_batches([batch(seed=k)]), tmp_path / f"{k}.parquet")
    seen = []

    def stop(rows):
        seen.append(rows)
        if rows > 600:
            raise error

    files = str(tmp_path / "*.parquet")
    threads = threading.active_count()
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        lmer(FORMULA, stream(files, checkpoint=tmp_path / "sums", progress=stop))
    assert threading.active_count() <= threads + 1
    assert len(list((tmp_path / "sums").glob("*.pkl"))) == 2
    assert not list((tmp_path / "sums").glob("*.new"))
    again = lmer(FORMULA, stream(files, checkpoint=tmp_path / "sums"))
    assert again.criterion == lmer(FORMULA, stream(files, checkpoint=tmp_path / "fresh")).criterion


def test_threads_leave_a_stream_the_same_to_the_bit():
    rows = [batch(2000, seed=k) for k in range(3)]
    fits = [lmer(FORMULA, iter(rows), control=Control(engine="iterative", threads=k)) for k in (1, 2)]
    np.testing.assert_array_equal(fits[0].theta, fits[1].theta)
    assert fits[0].criterion == fits[1].criterion


@pytest.mark.parametrize(
    "term",
    ["relevel(f, 'b')", "C(f, base=2)", "factor(f, ['b', 'a', 'c'])", "as.factor(C(f, levels=['b', 'a', 'c']))"],
)
def test_an_order_of_levels_that_batches_would_lose_is_refused(term):
    rows = [batch(seed=k, f=np.array(list(levels))[np.arange(300) % 2]) for k, levels in enumerate(("bc", "ab"))]
    with pytest.raises(FormulaError, match="orders levels, which come in batches"):
        lmer(f"y ~ x + {term} + (1 | g)", stream(rows))


def test_an_order_of_levels_that_is_given_by_name_is_that_of_a_table():
    rows = [batch(seed=k, f=np.array(list(levels))[np.arange(300) % 2]) for k, levels in enumerate(("bc", "ab"))]
    for term in ("as.factor(`f`, levels=['b', 'c', 'a'])", "C(f, contr.treatment(base='b'))"):
        formula = f"y ~ x + {term} + (1 | g)"
        streamed, whole = lmer(formula, stream(lambda: iter(rows))), lmer(formula, pa.Table.from_batches(rows))
        assert list(streamed.fixef.index) == list(whole.fixef.index)
        np.testing.assert_allclose(streamed.fixef, whole.fixef, rtol=1e-6)
