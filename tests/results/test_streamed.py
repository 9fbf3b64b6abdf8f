"""lmer() of rows in batches: the answers of the table in memory, whatever the source, the order and the cuts."""

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_series_equal

from fastlmm_core import anova, lmer, stream
from fastlmm_core.core import Control
from fastlmm_core.core.streaming import row_store
from fastlmm_core.errors import DataError, FormulaError, MemoryLimitError, ModelError, StreamedError
from fastlmm_core.fitting.streaming import accumulate, finalise, merge, prepare, stats
from fastlmm_core.formula.sources import Stream
from fastlmm_core.results import cluster

N = 900


def table(seed=0, n=N):
    rng = np.random.default_rng(seed)
    names = np.array(["ä", "β", "z", "a b", "Ω", "", "c:d", "日本", *(f"u{k}" for k in range(22))], dtype=object)
    g = rng.integers(0, 30, n)
    data = pd.DataFrame(
        {
            "user": names[g],
            "item": rng.integers(-3, 9, n) * 1_000_000_007,
            "site": rng.choice([1.0, 2.0, 7.0, 9.0, 11.0], n),
            "f": rng.choice(["b", "a", "c"], n),
            "flag": rng.uniform(size=n) < 0.4,
            "x": 3.0 + rng.normal(size=n),
            "w": rng.uniform(0.5, 2.0, n),
            "o": rng.normal(size=n),
        }
    )
    data["y"] = (
        rng.normal(size=30)[g] + 0.4 * rng.normal(size=30)[g] * data["x"] + 0.5 * rng.normal(size=n) + data["flag"]
        + 0.1 * (data["item"] // 1_000_000_007) + 0.2 * data["site"]
    )  # fmt: skip
    data.loc[[3, 400], "x"] = np.nan
    data.loc[5, "user"] = None
    data.loc[7, "site"] = np.nan
    data.loc[[9, 10], "w"] = 0.0
    return data


DATA = table()
ARROW = pa.Table.from_pandas(DATA, preserve_index=False)
MODELS = {
    "slopes and crossed": ("y ~ x + flag + (x | user) + (1 | item)", {}),
    "floats as levels": ("y ~ x + (1 | site)", {"weights": "w", "offset": "o"}),
    "factor, dot and subset": ("y ~ x * f + (1 | user)", {"subset": "x > 1", "contrasts": {"f": "sum"}}),
    "nested": ("y ~ log(x + 10) + I(x**2) + (1 | user/f) + offset(o)", {"reml": False}),
    "learnt": ("y ~ scale(x) + poly(o, 2) + (1 | user:item)", {}),
    "independent": ("sqrt(y + 50) ~ x + (x || user) + (1 | factor(site))", {}),
    "levels given": ("y ~ C(f, levels=['c', 'a', 'b']) + (0 + x | user)", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ratings") / "part files"
    path.mkdir()
    for k, part in enumerate(np.array_split(np.arange(N), 4)):
        pq.write_table(ARROW.take(part), path / f"{3 - k}.parquet", row_group_size=100)
    return path


def assert_same(found, expected):
    assert found.nobs == expected.nobs
    assert found.n_missing == expected.n_missing
    assert found.design.n_zero_weight == expected.design.n_zero_weight
    assert found.n_groups == expected.n_groups
    np.testing.assert_allclose(found.criterion, expected.criterion, rtol=1e-11)
    assert_series_equal(found.theta, expected.theta, rtol=1e-7, atol=1e-8)
    assert_series_equal(found.params, expected.params, rtol=1e-9, atol=1e-10)
    assert_series_equal(found.bse, expected.bse, rtol=1e-8)
    assert_frame_equal(found.ranef(), expected.ranef(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_files_is_the_table(name, folder):
    formula, options = MODELS[name]
    found, expected = lmer(formula, str(folder), **options), lmer(formula, DATA, **options)
    assert_same(found, expected)
    assert_frame_equal(found.coef_table(), expected.coef_table(), rtol=1e-5, atol=1e-12)
    new = DATA.dropna()[:40]
    assert_series_equal(found.predict(new), expected.predict(new), rtol=1e-7)
    batch = pa.RecordBatch.from_pandas(new, preserve_index=False)
    np.testing.assert_allclose(found.predict(batch), expected.predict(new), rtol=1e-7)


EXPECTED = {}


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["slopes and crossed", "nested", "independent"])
def test_any_order_and_cut_of_batches(name, data):
    formula, options = MODELS[name]
    if name not in EXPECTED:
        EXPECTED[name] = lmer(formula, DATA, **options)
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(N)
    cuts = sorted(data.draw(st.lists(st.integers(0, N), max_size=5)))
    batches = [ARROW.take(part) for part in np.split(order, cuts)]
    whole = lmer(formula, iter(batches), **options)
    assert_same(whole, EXPECTED[name])
    reml = options.get("reml", True)
    if reml:
        recipe = prepare(formula, Stream(ARROW))
        parts = [pickle.loads(pickle.dumps(stats(recipe, part))) for part in batches if len(part)]
        merged = merge([merge(parts[1:]), parts[0]]) if len(parts) > 1 else merge(parts)
        assert merged.n_total == N
        assert len(finalise(merged).random) == len(EXPECTED[name].design.random)


def test_sources_of_every_kind(folder):
    import duckdb
    import polars as pl

    formula = MODELS["slopes and crossed"][0]
    expected = lmer(formula, DATA)
    files = sorted(folder.glob("*.parquet"))
    encoded = ARROW.set_column(0, "user", ARROW["user"].dictionary_encode())
    relation = duckdb.from_arrow(ARROW)
    for source in (
        str(folder / "*.parquet"),
        files,
        files[0].parent,
        ds.dataset(folder, format="parquet"),
        ARROW.to_batches(100),
        iter(encoded.to_batches(100)),
        ARROW.to_reader(70),
        stream(ARROW, batch_size=111),
        stream(lambda: iter(ARROW.to_batches(200))),
        stream(pl.from_pandas(DATA).lazy()),
        stream(relation),
    ):
        assert_same(lmer(formula, source), expected)


def test_a_list_of_batches_is_read_as_often_as_it_takes():
    formula = "y ~ x + f + (1 | user)"  # levels take a pass
    assert_same(lmer(formula, ARROW.to_batches(100)), lmer(formula, DATA))
    with pytest.raises(DataError, match="this iterator gives them once"):
        lmer(formula, iter(ARROW.to_batches(100)))


def test_views_of_text_and_dates_are_levels():
    data = DATA.assign(day=pd.to_datetime("2024-02-27") + pd.to_timedelta(DATA["item"] // 1_000_000_007, unit="D"))
    rows = pa.Table.from_pandas(data, preserve_index=False)
    rows = rows.set_column(0, "user", rows["user"].cast(pa.string_view()))
    rows = rows.set_column(rows.schema.get_field_index("day"), "day", rows["day"].cast(pa.date32()))
    formula = "y ~ x + (1 | user) + (1 | day)"
    assert_same(lmer(formula, stream(rows, batch_size=130)), lmer(formula, data))


@pytest.mark.parametrize("memory", ["20 kB", 0.02e6, "0.02 MB", "20KB", "19.53125 KiB"])
def test_memory_is_bytes_or_a_text(memory):
    assert stream(ARROW, memory=memory).memory == 20_000


@pytest.mark.parametrize("memory", [0, -1, "much", "2 GBs", True, float("inf"), "1e400", b"2 GB", []])
def test_memory_that_is_no_size_is_refused(memory):
    with pytest.raises(DataError, match="memory must be a positive number of bytes"):
        stream(ARROW, memory=memory)


def test_rows_in_files_leave_a_fit_as_it_is(monkeypatch):
    formula, control = "y ~ x + (x | user) + (1 | item)", Control(engine="iterative")
    fits = [lmer(formula, stream(ARROW, batch_size=100, memory=m), control=control) for m in (None, "20 kB")]
    one, other = (fit.to_dict() for fit in fits)
    assert one == other
    again = pickle.loads(pickle.dumps(fits[1]))
    assert_frame_equal(again.ranef(), fits[0].ranef())


def test_what_follows_a_fit_without_its_rows(folder):
    formula = "y ~ x + f + (x | user)"
    found, expected = lmer(formula, folder), lmer(formula, DATA)
    for kind in (1, 2, 3):
        assert_frame_equal(found.anova(type=kind), expected.anova(type=kind), rtol=1e-5)
    for method in ("wald", "profile"):
        assert_frame_equal(found.conf_int(method=method), expected.conf_int(method=method), rtol=1e-4, atol=1e-6)
    assert str(found.var_corr()) == str(expected.var_corr())
    assert_frame_equal(found.coef_table("kenward-roger"), expected.coef_table("kenward-roger"), rtol=1e-5)
    np.testing.assert_allclose(found.refit_ml().criterion, expected.refit_ml().criterion, rtol=1e-11)
    text = str(found.summary())
    assert "Scaled residuals" not in text
    assert "Fixed effects" in text
    assert "<table" in found.summary()._repr_html_()
    assert pickle.loads(pickle.dumps(found)).criterion == found.criterion
    theta = expected.theta.to_numpy()
    objective = lmer(formula, folder, objective_only=True)
    np.testing.assert_allclose(objective(theta), expected.criterion, rtol=1e-11)
    np.testing.assert_allclose(lmer(formula, folder, start=theta).theta, theta, rtol=1e-6)


def test_fits_of_the_same_rows_are_compared_and_of_others_refused(folder):
    formulas = ["y ~ x + (1 | user)", "y ~ x + (x | user)"]
    small, large = (lmer(formula, folder, reml=False) for formula in formulas)
    memory = [lmer(formula, DATA, reml=False) for formula in formulas]
    expected = anova(*memory)
    for pair in (
        (small, large),
        (small, memory[1]),
        (lmer(formulas[0], iter(ARROW.to_batches(77)), reml=False), large),
    ):
        assert_frame_equal(anova(*pair), expected, rtol=1e-6)
    restricted = [lmer(formula, folder) for formula in formulas]
    assert_frame_equal(
        anova(*restricted, refit=False), anova(*(lmer(formula, DATA) for formula in formulas), refit=False), rtol=1e-6
    )
    with pytest.raises(ModelError, match="different fixed effects"):
        anova(restricted[0], lmer("y ~ x + flag + (x | user)", folder), refit=False)
    shifted = ARROW.set_column(8, "y", pa.array(DATA["y"] + 1.0))
    assert ARROW.column_names[8] == "y"
    for other, options, message in (
        (shifted, {}, "responses"),
        (ARROW, {"weights": "w + 1"}, "weights"),
        (ARROW, {"offset": "o"}, "offsets"),
        (ARROW.slice(20), {}, "rows"),
    ):
        with pytest.raises(DataError, match=message):
            anova(small, lmer(formulas[1], stream(other), reml=False, **options))


def test_what_needs_rows_says_so(folder, tmp_path):
    found = lmer("y ~ x + (x | user)", folder)
    asked = {
        "resid": lambda: found.resid,
        "fittedvalues": lambda: found.fittedvalues,
        "predict": lambda: found.predict(),
        "bootstrap": lambda: found.bootstrap(2),
        "hatvalues": lambda: found.hatvalues(),
        "cooks": lambda: found.cooks_distance(),
        "influence": lambda: found.influence(),
        "simulate": lambda: found.simulate(1),
        "refit": lambda: found.refit(np.zeros(5)),
        "save": lambda: found.save(tmp_path / "fit"),
        "codes": lambda: found.design.random[0].codes + 1,
    }
    for name, call in asked.items():
        with pytest.raises(StreamedError, match="rows of this fit were streamed"):
            print(name, call())


def test_a_first_pass_is_asked_for_by_name():
    batches = ARROW.to_batches(100)
    with pytest.raises(DataError, match=r"f and scale\(x\) can only be computed after a first pass"):
        lmer("y ~ f + scale(x) + (1 | user)", iter(batches))
    found = lmer("y ~ C(f, levels=['a', 'b', 'c']) + (1 | user)", iter(batches))
    expected = lmer("y ~ C(f, levels=['a', 'b', 'c']) + (1 | user)", DATA)
    assert_same(found, expected)
    with pytest.raises(MemoryLimitError, match=r"scale\(x\) learns from whole columns"):
        lmer("y ~ scale(x) + (1 | user)", stream(ARROW), control=Control(memory_limit=100))


def test_expressions_over_several_rows_are_refused():
    for formula in ("y ~ I(x - x.mean()) + (1 | user)", "I(y - np.nanmean(y)) ~ x + (1 | user)"):
        with pytest.raises(FormulaError, match="takes values of several rows"):
            lmer(formula, stream(ARROW), env={"np": np})

    def half(values):
        return values / 2

    found = lmer("y ~ half(x) + (1 | user)", stream(ARROW))
    assert_same(found, lmer("y ~ half(x) + (1 | user)", DATA))


def test_schemas_that_differ_name_the_column_and_the_file(tmp_path):
    pq.write_table(ARROW, tmp_path / "a.parquet")
    pq.write_table(ARROW.drop_columns(["x"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no column 'x'"):
        lmer("y ~ x + (1 | user)", tmp_path)
    other = ARROW.set_column(1, "item", pa.array([f"i{k}" for k in range(N)]))
    pq.write_table(other, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"column 'item' holds text in .*b\.parquet, but numbers"):
        lmer("y ~ x + (1 | item)", tmp_path)
    floats = ARROW.set_column(1, "item", pa.array(np.arange(N) + 0.5))
    pq.write_table(floats, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"'item' holds floats in .*b\.parquet, but whole numbers"):
        lmer("y ~ x + (1 | item)", tmp_path)
    bad = DATA.assign(x=np.where(np.arange(N) == 700, np.inf, DATA["x"]))
    pq.write_table(pa.Table.from_pandas(bad), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: infinite or undefined values in the fixed part: x"):
        lmer("y ~ x + (1 | user)", tmp_path)
    with pytest.raises(DataError, match="did you mean 'user'"):
        lmer("y ~ x + (1 | usr)", tmp_path)
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(DataError, match=r"cannot read .*c\.parquet"):
        lmer("y ~ x + (1 | user)", tmp_path)
    with pytest.raises(DataError, match="no such file"):
        lmer("y ~ x + (1 | user)", tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no Parquet file"):
        lmer("y ~ x + (1 | user)", tmp_path / "empty")
    with pytest.raises(DataError, match="batch 1 is a int"):
        lmer("y ~ x + (1 | user)", iter([ARROW, 3]))
    with pytest.raises(DataError, match="cannot read batches"):
        stream(3)
    with pytest.raises(DataError, match="no rows"):
        lmer("y ~ x + (1 | user)", iter([ARROW.slice(0, 0)]))


def test_arguments_that_streams_do_not_have(folder):
    for options, message in (
        ({"weights": np.ones(N)}, "weights must be the name"),
        ({"na_action": "exclude"}, "na_action"),
        ({"residual": "ar1(x | user)"}, "residual cannot be combined"),
    ):
        with pytest.raises((DataError, ModelError), match=message):
            lmer("y ~ x + (1 | user)", folder, **options)
    with pytest.raises(DataError, match=r"missing values in x \(1\)"):
        lmer("y ~ x + (1 | user)", folder, na_action="raise")
    with pytest.raises(ModelError, match="structure of cs"):
        lmer("y ~ x + cs(1 + x | user)", folder)
    with pytest.raises(ModelError, match="only"):
        lmer("y ~ x + (1 | g)", stream(ARROW.append_column("g", pa.array(["one"] * N))))
    with pytest.raises(DataError, match="no row is left"):
        lmer("y ~ x + (1 | user)", stream(ARROW), subset="x > 1000")
    for options in ({"batch_size": 0}, {"progress": 3}):
        with pytest.raises(DataError):
            stream(ARROW, **options)


def test_progress_tells_the_rows(folder, capsys):
    seen = []
    lmer("y ~ x + (1 | user)", stream(folder, progress=seen.append))
    assert seen[-1] == N
    assert seen == sorted(seen)
    lmer("y ~ x + (1 | user)", stream(folder, progress=True))
    assert "rows" in capsys.readouterr().err


def test_streams_reach_the_iterative_engine(monkeypatch):
    formula, control = "y ~ x + (1 | user) + (1 | item)", Control(engine="iterative", seed=1)
    expected = lmer(formula, DATA, control=control)
    monkeypatch.setattr(row_store, "FIRST_LOOK", 200)
    monkeypatch.setattr(row_store, "SAMPLE", 1)
    found = lmer(formula, stream(ARROW, batch_size=100), control=control)
    np.testing.assert_allclose(found.theta, expected.theta, rtol=1e-5)
    assert_series_equal(found.params, expected.params, rtol=1e-6)
    assert "iterative" in str(found.summary())
    np.testing.assert_allclose(found.predict(DATA[:9]), expected.predict(DATA[:9]), rtol=1e-5)
    with pytest.raises(StreamedError, match="streamed"):
        print(found.resid)
    recipe = prepare(formula, Stream(ARROW))
    total = stats(recipe, stream(ARROW, batch_size=100))
    total.total.store.collapse()
    np.testing.assert_allclose(cluster.finalise(total, control=control).theta, expected.theta, rtol=1e-5)
    assert_same(cluster.finalise(total), lmer(formula, DATA))
    slopes = "y ~ x + (x | user) + (1 | item)"
    total = stats(prepare(slopes, Stream(ARROW)), stream(ARROW, batch_size=100))
    total.total.store.collapse()
    with pytest.raises(ModelError, match="added up to cells"):
        cluster.finalise(total, control=control)


class Killed(BaseException):
    """What stands for a signal."""


def test_a_killed_call_goes_on_after_the_last_finished_file(folder, tmp_path):
    formula = MODELS["slopes and crossed"][0]

    def until(rows):
        if rows > 600:
            raise Killed

    with pytest.raises(Killed):
        lmer(formula, stream(folder, checkpoint=tmp_path, progress=until))
    kept = len(list(tmp_path.glob("*.pkl")))
    assert kept == 2
    broken = sorted(tmp_path.glob("*.pkl"))[1]
    broken.write_bytes(broken.read_bytes()[:100])  # as a machine that died may leave it
    read = []
    source = stream(folder, checkpoint=tmp_path)
    batches = source.batches
    source.batches = lambda names, skip=(): (read.append(name) or (name, b) for name, b in batches(names, skip))
    found = lmer(formula, source)
    assert read[0].endswith("0.parquet")  # its first rows, to see what the columns are
    assert {name[-9:] for name in read[1:]} == {"1.parquet", "2.parquet", "3.parquet"}
    assert_same(found, lmer(formula, DATA))
    files = sorted(folder.glob("*.parquet"))
    read.clear()
    files[0].touch()  # it may have changed
    assert_same(lmer(formula, source), found)
    assert len(set(read[1:])) == 4
    again = lmer("y ~ x + (1 | user)", stream(folder, checkpoint=tmp_path))  # another model: nothing of that is used
    assert_same(again, lmer("y ~ x + (1 | user)", DATA))


def test_accumulating_is_merging(folder):
    recipe = prepare("y ~ x + (1 | user)", Stream(folder))
    whole = accumulate(recipe, Stream(folder))
    parts = [stats(recipe, path) for path in sorted(folder.glob("*.parquet"))]
    np.testing.assert_allclose(merge(parts).total.sums.raw(0)[0].sum(), whole.total.sums.raw(0)[0].sum())
    with pytest.raises(DataError, match="nothing to merge"):
        merge([])
    with pytest.raises(ModelError, match="other models"):
        merge([parts[0], stats(prepare("y ~ o + (1 | user)", Stream(folder)), folder)])
    assert stats(recipe, DATA).n_total == N


def test_new_rows_with_dates():
    data = DATA[["y", "user"]].assign(t=pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(N), unit="D"))
    data = data.dropna()
    found, kept = (lmer("y ~ t + (1 | user)", of) for of in (Stream(pa.Table.from_pandas(data)), data))
    np.testing.assert_allclose(found.predict(data[:3]), kept.predict(data[:3]), rtol=1e-8)
