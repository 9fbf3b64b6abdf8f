"""Options: what they accept, what they fall back on."""

import os
from dataclasses import FrozenInstanceError

import pytest

from fastlmm_core.core import Control
from fastlmm_core.core.control import ENGINES, checked_control
from fastlmm_core.core.machine import default_threads
from fastlmm_core.errors import ModelError


def test_defaults():
    control = Control()
    assert control.engine == "auto"
    assert control.n_threads == default_threads() >= 1
    assert control.n_bytes > 2**20


@pytest.mark.parametrize("engine", ENGINES)
def test_engines(engine):
    assert Control(engine).engine == engine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "cuda"}, "'cuda' does not exist.*'auto', 'dense', 'sparse'"),
        ({"engine": None}, "does not exist"),
        ({"max_evaluations": 0}, "max_evaluations must be at least 1, not 0"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"tol": -1e-8}, "tol must be positive"),
        ({"tol": float("nan")}, "tol must be positive"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"memory_limit": 0}, "memory_limit must be a positive number of bytes"),
        ({"memory_limit": float("inf")}, "memory_limit must be a positive number of bytes"),
        ({"memory_limit": "1 GB"}, "memory_limit must be a positive number of bytes, not '1 GB'"),
        ({"max_evaluations": 1.5}, "max_evaluations must be a whole number, not 1.5"),
        ({"max_evaluations": "9"}, "max_evaluations must be a whole number, not '9'"),
        ({"max_evaluations": 10**12}, "max_evaluations must be at most 100000, not 1000000000000"),
        ({"threads": 10**9}, "threads must be at most 256, not 1000000000"),
        ({"threads": 2.0}, "threads must be a whole number, not 2.0"),
        ({"threads": True}, "threads must be a whole number, not True"),
        ({"tol": "small"}, "tol must be positive and finite, not 'small'"),
        ({"tol": float("inf")}, "tol must be positive and finite"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        Control(**options)


def test_given_values_are_used():
    control = Control(threads=7, memory_limit=12345)
    assert control.n_threads == 7
    assert control.n_bytes == 12345


def test_it_does_not_change():
    with pytest.raises(FrozenInstanceError):
        Control().tol = 1.0


def test_checked_control():
    given = Control("dense")
    assert checked_control(given) is given
    assert checked_control(None) == Control()


@pytest.mark.parametrize("wrong", ["dense", {"engine": "dense"}, 3])
def test_a_control_that_is_none_is_refused(wrong):
    with pytest.raises(ModelError, match=f"must be a Control.*not {type(wrong).__name__}"):
        checked_control(wrong)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_threads_are_the_processors_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert default_threads() == Control().n_threads == 1
    finally:
        os.sched_setaffinity(0, before)
    assert default_threads() == len(before)
