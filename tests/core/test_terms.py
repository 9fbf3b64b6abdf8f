"""What a term and the core's arrays may be made of."""

import copy
import pickle
import warnings

import numpy as np
import pytest

from fastlmm_core.core import Control, Model, Term, fit, fit_many, objective
from fastlmm_core.errors import DataError, EmptyLevelWarning, FastLMMError, ModelError

CODES = np.repeat(np.arange(12), 10)
Y = np.random.default_rng(0).normal(size=120)
X = np.ones((120, 1))


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, 2**31 + 5, 2**32, 2**40, 2**63 - 1])
def test_codes_that_32_bits_cannot_hold(value):
    with pytest.raises(DataError, match=f"run up to {value}.*have to be coded first"):
        Term(np.where(np.arange(120) == 3, value, CODES))


def test_unsigned_codes_above_63_bits():
    codes = CODES.astype(np.uint64)
    codes[0] = 2**63 + 1
    with pytest.raises(DataError, match="have to be coded first"):
        Term(codes)


def test_a_number_of_levels_beyond_32_bits():
    with pytest.raises(DataError, match="have to be coded first"):
        Term(CODES, n_levels=2**31)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64, ">i4"])
def test_every_integer_type_gives_the_same_fit(dtype):
    assert fit(Y, X, [Term(CODES.astype(dtype))]).criterion == fit(Y, X, [Term(CODES)]).criterion


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_negative_codes(dtype):
    codes = CODES.astype(dtype)
    codes[7] = -1
    with pytest.raises(DataError, match=r"run from -1 to 11.*count from zero"):
        Term(codes)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_arrays_changed_after_the_term_was_made(dtype):
    codes, z = CODES.astype(dtype), np.random.default_rng(1).normal(size=120)
    term = Term(codes, z)
    model = Model(X, [term])
    expected = model.fit(Y).complete()
    codes[:], z[:] = 2**30, np.nan
    found = model.fit(Y)
    assert found.criterion == expected.criterion
    np.testing.assert_array_equal(found.fitted, expected.fitted)
    with pytest.raises(ValueError, match="read-only"):
        term.codes[0] = 99
    for again in (pickle.loads(pickle.dumps(term)), copy.deepcopy(term), copy.copy(term)):
        with pytest.raises(ValueError, match="read-only"):
            again.codes[0] = 99


def test_a_read_only_array_is_not_copied():
    codes = CODES.astype(np.int32)
    codes.setflags(write=False)
    assert Term(codes).codes is codes


def test_codes_that_begin_at_one_are_said_once():
    with pytest.warns(EmptyLevelWarning, match="no row has code 0.*run from 1 to 12") as caught:
        Term(CODES + 1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Term(CODES + 1, n_levels=13)
        Term(CODES)


@pytest.mark.parametrize("n_levels", ["a", "12", 12.0, True, [12]])
def test_a_number_of_levels_that_is_none(n_levels):
    with pytest.raises(DataError, match="n_levels must be a whole number"):
        Term(CODES, n_levels=n_levels)


@pytest.mark.parametrize("terms", [Term(CODES), CODES, "g", None, 3, {"g": CODES}])
def test_terms_that_are_no_list(terms):
    with pytest.raises(ModelError, match="terms must be a list of Term"):
        fit(Y, X, terms)


def test_entries_that_are_no_terms():
    with pytest.raises(ModelError, match="entry 1 is a ndarray"):
        fit(Y, X, [Term(CODES), CODES])


COMPLEX = Y + 1j
DATES = np.datetime64("2026-01-01") + np.arange(120)
WRONG = {
    "complex": COMPLEX,
    "real parts only": Y.astype(complex),
    "dates": DATES,
    "durations": DATES - DATES[0],
    "texts": Y.astype(str),
    "objects": np.array([*Y[:-1], "3"], dtype=object),
    "complex objects": np.array([*Y[:-1], 1j], dtype=object),
    "missing objects": np.array([*Y[:-1], None], dtype=object),
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_what_is_no_real_number_is_refused_everywhere(values):
    for attempt in (
        lambda: fit(values, X, [Term(CODES)]),
        lambda: fit_many(values[None], X, [Term(CODES)]),
        lambda: objective(values, X, [Term(CODES)]),
        lambda: fit(Y, values[:, None], [Term(CODES)]),
        lambda: fit(Y, X, [Term(CODES)], weights=values),
        lambda: fit(Y, X, [Term(CODES)], offset=values),
        lambda: Term(CODES, values),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy drops imaginary parts with no more than a warning
            with pytest.raises(DataError, match="must hold real numbers"):
                attempt()


def test_masked_arrays():
    masked = np.ma.array(Y, mask=np.arange(120) < 2)
    for attempt in (
        lambda: fit(masked, X, [Term(CODES)]),
        lambda: fit(Y, masked[:, None], [Term(CODES)]),
        lambda: fit(Y, X, [Term(CODES)], weights=masked),
        lambda: Term(np.ma.array(CODES, mask=np.arange(120) < 2)),
        lambda: Term(CODES, masked),
    ):
        with pytest.raises(DataError, match=r"has 2 masked value\(s\)"):
            attempt()
    nothing_masked = np.ma.array(Y, mask=False)
    assert fit(nothing_masked, X, [Term(CODES)]).criterion == fit(Y, X, [Term(CODES)]).criterion


def test_numbers_of_other_types_are_taken():
    expected = fit(np.round(Y * 8), X, [Term(CODES)]).criterion
    whole = np.round(Y * 8)
    for values in (whole.astype(np.int64), whole.astype(np.float32), whole.astype(object), whole.tolist()):
        assert fit(values, X, [Term(CODES)]).criterion == expected


@pytest.mark.parametrize("reml", ["FALSE", "ML", "REML", 0, 1, None, np.array([True])])
def test_a_criterion_that_is_neither_true_nor_false(reml):
    for entry in (fit, objective, Model):
        arguments = (X, [Term(CODES)]) if entry is Model else (Y, X, [Term(CODES)])
        with pytest.raises(ModelError, match="reml must be True or False"):
            entry(*arguments, reml=reml)


def test_every_wrong_type_ends_in_an_error_of_ours():
    for wrong in (None, "text", 3, object(), [[1, 2], [3]], {}, (), lambda: 0):
        for attempt in (
            lambda wrong=wrong: Term(wrong),
            lambda wrong=wrong: fit(wrong, X, [Term(CODES)]),
            lambda wrong=wrong: fit(Y, X, [Term(CODES)], control=wrong if wrong is not None else 3),
            lambda wrong=wrong: fit(Y, X, [Term(CODES)], start=wrong if wrong not in (None, 3) else "x"),
            lambda wrong=wrong: Model(X, [Term(CODES)]).fit_many(wrong),
            lambda wrong=wrong: Term(CODES, cov=wrong),
            lambda wrong=wrong: Control(engine=wrong),
        ):
            with pytest.raises(FastLMMError):
                attempt()
