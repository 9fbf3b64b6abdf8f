"""The format that results are saved in."""

import copy
import pickle

import numpy as np
import pytest

from fastlmm_core import LmerResult
from fastlmm_core.core import Model, Term, glmm, saved
from fastlmm_core.errors import SavedFormatError


def test_a_result_comes_back(slopes: LmerResult):
    for again in (pickle.loads(pickle.dumps(slopes)), copy.deepcopy(slopes), copy.copy(slopes)):
        assert again.criterion == slopes.criterion
        assert str(again.summary()) == str(slopes.summary())
        assert again.refit(again.design.y).criterion == slopes.refit(slopes.design.y).criterion


@pytest.mark.parametrize("part", ["result", "fit"])
def test_another_format_ends_in_one_sentence(slopes: LmerResult, monkeypatch: pytest.MonkeyPatch, part: str):
    thing = slopes if part == "result" else slopes.core
    monkeypatch.setattr(saved, "FORMAT", 0)
    text = pickle.dumps(thing)
    monkeypatch.undo()
    with pytest.raises(SavedFormatError, match=r"was saved in format 0, but this version .* reads format \d+: load it"):
        pickle.loads(text)


@pytest.mark.parametrize("state", [None, {}, {"design": 1}, (1, 2)])
def test_a_state_without_a_format(state):
    with pytest.raises(SavedFormatError, match="saved in format 0"):
        saved.read_state(state, "result")


def copies(thing):
    return pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing), copy.copy(thing)


@pytest.fixture
def counts():
    g, h = np.repeat(np.arange(8), 6), np.tile(np.arange(6), 8)
    y = np.array([2, 1, 3, 0, 2, 4, 7, 5, 6, 9, 4, 8] * 4, float)
    return y, np.ones((48, 1)), Term(g), Term(h)


@pytest.mark.parametrize(("crossed", "n_agq"), [(False, 1), (False, 5), (True, 1), (True, 0), (False, 0)])
def test_generalised_models_and_objectives_come_back(counts, crossed: bool, n_agq: int):
    y, X, *terms = counts
    model = glmm.Model(X, terms if crossed else terms[:1], "poisson", n_agq=n_agq)
    objective = model.objective(y)
    value, gradient, _ = objective.derivatives(objective.start)
    first = model.fit(y)
    for again in copies(model):
        found = again.fit(y)
        assert found.criterion == first.criterion
        np.testing.assert_array_equal(found.theta, first.theta)
    for again in copies(objective):
        there, slopes, _ = again.derivatives(again.start)
        assert there == pytest.approx(value, abs=1e-9)
        np.testing.assert_allclose(slopes, gradient, atol=1e-7)
    other = copy.deepcopy(model)
    assert other.engine is not model.engine
    assert other.searcher.engine is other.engine


def test_an_evaluation_comes_back(counts):
    y, X, *terms = counts
    objective = Model(X, terms).objective(y)
    at = objective.at(objective.start)
    for again in copies(at):
        assert again.value == at.value
        np.testing.assert_array_equal(again.modes.gamma, at.modes.gamma)
