"""Arguments of the wrong type are named, whatever the call fails over."""

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import (
    bootstrap_test,
    hypothetical,
    is_singular,
    lmer,
    lmer_many,
    load,
    load_dataset,
    model_table,
    power,
    power_curve,
    stream,
)
from fastlmm_core.errors import DataError, ModelError, SavedFormatError
from fastlmm_core.fitting.spelling import explained


@pytest.fixture(scope="module")
def fit():
    return lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("conf_int", {"level": "a"}, "level must be a number, not 'a'"),
        ("conf_int", {"level": [0.9]}, "level must be a number, not a list"),
        ("conf_int", {"alpha": ["x"]}, "alpha must be a number or None, not a list"),
        ("bootstrap", {"n": 2, "statistic": 3}, "statistic must be a function or None, not 3"),
        ("bootstrap", {"n": 2, "kind": np.zeros(3)}, "kind must be 'parametric' or 'residual', not a ndarray"),
        ("emtrends", {"variable": b"x"}, "variable must be a text, not a bytes"),
        ("emmeans", {"specs": "Days", "at": "x"}, "at must be a dict or None, not 'x'"),
        ("simulate", {"params": "x"}, "params must be a dict of numbers or None, not 'x'"),
        ("predict", {"interval": pd.Series([1.0])}, "interval must be 'confidence' or .* or None, not a Series"),
        ("marginal_cov", {"level": [1, 2]}, "level must be a single value, not a list"),
        ("emmeans", {"specs": np.array("Days")}, "specs must be a text or a list of texts, not a ndarray"),
        ("profile", {"which": np.zeros((2, 2))}, "which must be a text or a list of texts or None, not a ndarray"),
        ("tidy", {"effects": 3}, "effects must be"),
    ],
)  # fmt: skip
def test_methods(fit, method, arguments, message):
    with pytest.raises(DataError, match=message):
        getattr(fit, method)(**arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda data: load(3),
        lambda data: lmer("Reaction ~ Days + (1 | Subject)", data, weights=[[1.0], [1.0, 2.0]]),
        lambda data: lmer_many("~ Days + (1 | Subject)", data, data[["Reaction"]], weights=object()),
        lambda data: hypothetical("Reaction ~ Days + (1 | Subject)", data, params=3, sd={"Subject": 1.0}),
    ],
)
def test_functions(call):
    with pytest.raises(DataError):
        call(load_dataset("sleepstudy"))


def test_errors_of_right_types_and_of_callbacks_are_left_alone():
    @explained
    def work(n: "int", tell: "Callable[[], None]") -> None:  # noqa: F821
        tell()

    def fails():
        raise KeyError("the callback's own")

    with pytest.raises(KeyError, match="own"):
        work(3, fails)
    with pytest.raises(DataError, match="n must be a whole number, not 'x'") as caught:
        work("x", fails)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(TypeError, match="argument"):
        work(3)


def test_lists_dicts_and_models(fit):
    h = hypothetical(
        "Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy"), params={"Days": 1.0}, sd={"Subject": 1.0}
    )
    for call, message in (
        (
            lambda: power_curve(h, "Days", along={"Subject": 3}),
            "along must be a dict of",
        ),
        (lambda: power_curve(h, "Days", along={"Subject": ["a"]}), "along must be a dict of"),
        (lambda: power_curve(h, "Days", along={"Subject": []}), "along has no size for Subject"),
        (lambda: power(h, None), "tests are texts or Estimates"),
        (lambda: is_singular(3), "fit must be a fitted model, not 3"),
        (lambda: is_singular(fit, "a"), "tol must be a number, not 'a'"),
        (lambda: bootstrap_test(fit, None), "must be a fitted model, not None"),
        (lambda: model_table(fit, 3), "fits must be a fitted model, not 3"),
    ):
        with pytest.raises((DataError, ModelError), match=message):
            call()


@pytest.mark.parametrize("place", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_damaged_file_is_named(fit, tmp_path, place):
    path = tmp_path / "fit.flmm"
    fit.save(path)
    content = path.read_bytes()
    k = int(place * len(content))
    for damaged in (
        content[:k],
        content[:k] + bytes([content[k] ^ 0x55]) + content[k + 1 :],
        content[:k] + content[:k],
    ):
        path.write_bytes(damaged)
        try:
            again = load(path)
        except SavedFormatError as error:
            told = str(error)
        else:  # a bit that nothing depends on
            told = str(path) if again.criterion == pytest.approx(fit.criterion) else ""
        assert str(path) in told


def test_streams_that_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    for call, message in (
        (lambda: lmer("y ~ 1 + (1 | g)", stream(lambda: None)), "the function gave NoneType, not batches"),
        (lambda: stream("a.parquet", checkpoint=3), "checkpoint must be the path of a folder, not 3"),
        (lambda: stream("a.parquet", checkpoint=tmp_path / "file"), "checkpoint must be a folder, but .* is a file"),
    ):
        with pytest.raises(DataError, match=message):
            call()
