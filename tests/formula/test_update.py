"""Formulas changed as R's `update` changes them."""

from __future__ import annotations

import pytest

from fastlmm_core import FormulaError
from fastlmm_core.formula.update import updated_formula


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("y ~ x + (1 | g)", ". ~ . - x", "y ~ 1 + (1 | g)"),
        ("y ~ x + (1 | g)", "log(.) ~ .", "log(y) ~ x + (1 | g)"),
        ("y ~ x + (1 | g)", "~ . + (1 | item)", "y ~ x + (1 | g) + (1 | item)"),
        ("y ~ x + (1 | g)", "~ . + z", "y ~ x + z + (1 | g)"),
        ("y ~ a * b + (1 | g)", ". ~ . - b:a", "y ~ a + b + (1 | g)"),
        ("y ~ a * b + (1 | g)", ". ~ . - a", "y ~ b + a:b + (1 | g)"),
        ("y ~ a + b + (1 | g)", ". ~ .^2", "y ~ (a + b)^2 + (1 | g)"),
        ("y ~ x + (x | g)", ". ~ . - (x | g) + (1 | g)", "y ~ x + (1 | g)"),
        ("y ~ x + (x | g)", ". ~ . - (0 + x | g)", "y ~ x + (1 | g)"),
        ("y ~ x + (x | g)", ". ~ . - (1 | g)", "y ~ x + (0 + x | g)"),
        ("y ~ x + (x || g)", ". ~ . - (1 | g)", "y ~ x + (0 + x | g)"),
        ("y ~ x + (1 | g) + (1 | h)", ". ~ . - (1 | h)", "y ~ x + (1 | g)"),
        ("y ~ x + (1 | a:b)", ". ~ . - (1 | b:a) + (1 | g)", "y ~ x + (1 | g)"),
        ("y ~ x + (1 | g)", ". ~ . - 1", "y ~ 0 + x + (1 | g)"),
        ("y ~ 0 + x + (1 | g)", ". ~ . + 1", "y ~ 0 + x + 1 + (1 | g)"),
        ("y ~ x + offset(w) + (1 | g)", ". ~ . - offset(w)", "y ~ x + (1 | g)"),
        ("y ~ log(x) + (1 | g)", ". ~ . - log(x) + x", "y ~ x + (1 | g)"),
        ("y ~ x + (1 | g)", "z ~ w + (1 | h)", "z ~ w + (1 | h)"),
    ],
)
def test_changes(old: str, new: str, expected: str) -> None:
    assert updated_formula(old, new) == expected


def test_names_that_need_quotes_keep_them() -> None:
    assert updated_formula("y ~ `a b` * x + (1 | g)", ". ~ . - `a b`:x") == "y ~ `a b` + x + (1 | g)"


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (". ~ . - z", "z takes out a term that is not there: the terms are x"),
        (". ~ . - (1 | h)", "the random-effect terms are"),
        (". ~ . - offset(w)", "offset"),
        ("x + z", "two sides"),
        (". ~ x - .", "everything"),
    ],
)
def test_what_is_not_there_cannot_be_taken_out(new: str, words: str) -> None:
    with pytest.raises(FormulaError, match=words):
        updated_formula("y ~ x + (1 | g)", new)
