"""The examples on the page of covariance structures."""

import doctest
import warnings
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "structures.md"


def test_examples_of_the_page():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.failed == 0
    assert found.attempted > 8
