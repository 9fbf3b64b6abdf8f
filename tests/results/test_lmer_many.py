"""One formula, many responses, and moderated t statistics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fastlmm_core import DataError, glmer_many, hypothetical, lmer, lmer_many, lmer_many_batches
from fastlmm_core.inference.moderated import squeeze


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    return pd.DataFrame({"person": np.repeat(np.arange(12), 4), "dose": list("abab") * 12, "age": np.arange(48) % 7.0})


@pytest.fixture(scope="module")
def genes(samples: pd.DataFrame) -> np.ndarray:
    rng = np.random.default_rng(1)
    scale = np.sqrt(8.0 / rng.chisquare(8.0, 60))[:, None]
    return scale * (rng.normal(size=(60, 12))[:, samples.person] + rng.normal(size=(60, 48)))


def test_rows_are_single_fits(samples: pd.DataFrame, genes: np.ndarray) -> None:
    found = lmer_many("~ dose + age + (1 | person)", samples, genes, contrasts={"dose": "dose[T.b]", "ten": "10 * age"})
    one = lmer("y ~ dose + age + (1 | person)", samples.assign(y=genes[3]))
    row, expected = found.table("dose").iloc[3], one.coef_table().loc["dose[T.b]"]
    for name in ("estimate", "std_error", "df", "t", "p"):
        assert row[name] == pytest.approx(expected[name], rel=1e-3)
    assert found.table("ten")["estimate"].iloc[3] == pytest.approx(10 * one.params["age"], rel=1e-5)
    np.testing.assert_allclose(found.params.iloc[3], one.params, rtol=1e-4, atol=1e-6)
    with pytest.raises(DataError, match="there are dose, ten"):
        found.table("age")
    for nowhere in (2, -3, True, 1.0):
        with pytest.raises(DataError, match="there is no contrast"):
            found.table(nowhere)  # type: ignore[arg-type]
    assert found.table(-1).equals(found.table("ten"))


def test_forms_of_responses(samples: pd.DataFrame, genes: np.ndarray) -> None:
    frame = pd.DataFrame(genes[:3].T, columns=["g1", "g2", "g3"])
    by_array = lmer_many("~ dose + (1 | person)", samples, genes[:3], contrasts="dose[T.b]").table()
    by_frame = lmer_many("~ dose + (1 | person)", samples, frame, contrasts="dose[T.b]").table()
    wide = pd.concat([samples, frame], axis=1)
    by_name = lmer_many("anything ~ dose + (1 | person)", wide, ["g1", "g2", "g3"], contrasts="dose[T.b]").table()
    assert by_frame.index.tolist() == ["g1", "g2", "g3"]
    pd.testing.assert_frame_equal(by_frame, by_name)
    np.testing.assert_allclose(by_frame["t"], by_array["t"])
    with pytest.raises(DataError, match="the data have 48 rows"):
        lmer_many("~ dose + (1 | person)", samples, genes[:, :40])


def test_names_of_the_calling_function(samples: pd.DataFrame, genes: np.ndarray) -> None:
    def half(x: pd.Series) -> pd.Series:
        return x / 2

    assert half is not None
    rows, right = samples.assign(count=samples.age), "half(age) + (1 | person)"
    assert lmer_many(f"~ {right}", rows, genes[:1]).contrasts[1] == "half(age)"
    assert glmer_many(f"~ {right}", rows, ["count"], family="poisson").params.shape == (1, 2)
    params = {"Intercept": 1.0, "half(age)": 2.0}
    assert hypothetical(f"y ~ {right}", rows, params=params, sd={"person": 1.0}, sigma=1.0).nobs == 48


def test_columns_by_name(samples: pd.DataFrame, genes: np.ndarray) -> None:
    wide = samples.assign(g1=genes[0], late=pd.array(genes[0] > 0, dtype="boolean"), text=["1", "2"] * 24, w=2.0)
    one = lmer_many("~ dose + (1 | person)", wide, "g1", weights="w + age")
    again = lmer_many("~ dose + (1 | person)", wide, ["g1", "late"], weights=2.0 + samples.age)
    pd.testing.assert_frame_equal(one.params, again.params.iloc[:1])
    late = lmer("late ~ dose + (1 | person)", wide.assign(late=1.0 * (genes[0] > 0)), weights="w + age")
    np.testing.assert_allclose(again.params.iloc[1], late.params, rtol=1e-4, atol=1e-6)
    for text in ("text", wide[["text"]]):
        with pytest.raises(DataError, match="text is categorical, not numeric"):
            lmer_many("~ dose + (1 | person)", wide, text)


def test_false_discovery_rate(samples: pd.DataFrame, genes: np.ndarray) -> None:
    table = lmer_many("~ dose + (1 | person)", samples, genes, contrasts="dose[T.b]").table()
    np.testing.assert_allclose(table["p_adjusted"], stats.false_discovery_control(table["p"]))


def test_moderated_variances_lie_between(samples: pd.DataFrame, genes: np.ndarray) -> None:
    found = lmer_many("~ dose + (1 | person)", samples, genes, contrasts="dose[T.b]")
    plain, moderated = found.table(), found.table(moderated=True)
    assert moderated["std_error"].std() < plain["std_error"].std()
    assert (moderated["df"] > plain["df"]).all()
    assert "prior degrees of freedom" in moderated.attrs["notes"][0]


def test_prior_is_found_again() -> None:
    """Variances drawn from Smyth's (2004) own model."""
    rng = np.random.default_rng(0)
    df, d0, s0 = np.full(20_000, 6.0), 10.0, 0.3
    true = d0 * s0 / rng.chisquare(d0, len(df))
    posterior, prior_df, prior = squeeze(true * rng.chisquare(df) / df, df)
    assert prior_df == pytest.approx(d0, rel=0.08)
    assert prior == pytest.approx(s0, rel=0.03)
    assert np.mean((posterior - true) ** 2) < 0.6 * np.mean((true * rng.chisquare(df) / df - true) ** 2)
    _, infinite, _ = squeeze(0.3 * rng.chisquare(df[:50] * 100) / (df[:50] * 100), df[:50])
    assert infinite == np.inf


def test_blocks_in_and_record_batches_out(samples: pd.DataFrame, genes: np.ndarray) -> None:
    holes, weights = genes.copy(), np.random.default_rng(2).uniform(0.5, 2.0, genes.shape)
    holes[5, :3], holes[7] = np.nan, 1.0
    read: list[int] = []

    def blocks() -> Iterator[object]:
        for at in range(0, 60, 20):
            read.append(at)
            yield (holes[at : at + 20], weights[at : at + 20])

    both = {"dose": "dose[T.b]", "age": "age"}
    reader = lmer_many_batches("~ dose + age + (1 | person)", samples, blocks(), contrasts=both)
    assert read == []
    first = reader.read_next_batch()
    assert read == [0]  # a block at a time
    table = pd.concat([first.to_pandas(), reader.read_pandas()], ignore_index=True)
    whole = lmer_many("~ dose + age + (1 | person)", samples, holes, contrasts=both, weights=weights)
    assert table["response"].tolist() == [str(i) for i in range(60) for _ in both]
    for name, expected in (("dose", whole.table("dose")), ("age", whole.table("age"))):
        ours = table[table["contrast"] == name].set_index("response")
        for column in ("estimate", "std_error", "df", "t", "p"):
            np.testing.assert_allclose(ours[column], expected[column], rtol=1e-4, atol=1e-6)
        assert ours["message"].tolist() == expected["message"].tolist()
        assert ours["n"].tolist() == expected["n"].tolist()
    np.testing.assert_allclose(np.stack(table["theta"][::2]), whole.fits.theta, rtol=1e-3, atol=1e-4)
    frame = pd.DataFrame(genes[:3].T, columns=["g1", "g2", "g3"])
    named = lmer_many_batches("~ dose + (1 | person)", samples, [frame], contrasts="dose[T.b]").read_pandas()
    assert named["response"].tolist() == ["g1", "g2", "g3"]


def test_what_blocks_cannot_be(samples: pd.DataFrame, genes: np.ndarray) -> None:
    with pytest.raises(DataError, match="pairs"):
        lmer_many_batches("~ dose + (1 | person)", samples, [genes], weights=np.ones(genes.shape))
    with pytest.raises(DataError, match="iterable of blocks"):
        lmer_many_batches("~ dose + (1 | person)", samples, 3)
    with pytest.raises(DataError, match="the data have 48 rows"):
        lmer_many_batches("~ dose + (1 | person)", samples, [genes[:, :9]]).read_all()


def test_responses_that_are_no_numbers(samples: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="response y is categorical, not numeric"):
        lmer_many("~ dose + (1 | person)", samples.assign(y="a"), ["y"])
    with pytest.raises(DataError, match="do not make a table"):
        lmer_many("~ dose + (1 | person)", {"dose": [1, 2], "person": [1]}, [[1.0, 2.0]])


def test_frames_are_aligned_with_the_data(samples: pd.DataFrame, genes: np.ndarray) -> None:
    frame = pd.DataFrame(genes[:3].T, index=samples.index, columns=list("abc"))
    weights = pd.Series(np.linspace(0.5, 2.0, len(samples)), samples.index)
    formula = "~ dose + (1 | person)"
    want = lmer_many(formula, samples, frame, weights=weights)
    shuffled = {"responses": frame.sample(frac=1, random_state=0), "weights": weights.sample(frac=1, random_state=1)}
    pd.testing.assert_frame_equal(lmer_many(formula, samples, **shuffled).table(), want.table())
    each = pd.DataFrame(dict.fromkeys("abc", weights)).sample(frac=1, random_state=2)
    np.testing.assert_allclose(lmer_many(formula, samples, frame, weights=each).params, want.params, rtol=1e-6)
    with pytest.raises(DataError, match="the index of responses differs"):
        lmer_many(formula, samples, frame.set_axis(range(1000, 1000 + len(frame))))
    nullable = frame.astype("Float64").mask(frame == frame.iloc[4, 1])
    assert lmer_many(formula, samples, nullable).table()["n"].tolist() == [len(frame), len(frame) - 1, len(frame)]
    with pytest.raises(DataError, match="complex"):
        lmer_many(formula, samples, genes[:2] + 0j)
    masked = np.ma.MaskedArray(genes[:2], genes[:2] > 2)
    pd.testing.assert_frame_equal(
        lmer_many(formula, samples, masked).table(),
        lmer_many(formula, samples, np.where(genes[:2] > 2, np.nan, genes[:2])).table(),
    )
