"""The format that results are saved in."""

import copy
import pickle

import pytest

from fastlmm_core import LmerResult
from fastlmm_core.core import saved
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
