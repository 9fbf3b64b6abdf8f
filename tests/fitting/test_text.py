from __future__ import annotations

import pytest

from fastlmm_core.fitting.text import abbreviate, format_numbers, html_table, text_table


@pytest.mark.parametrize(
    ("values", "digits", "shown"),
    [
        # what R prints for these vectors
        ([24.740658, 5.9221377, 25.591796], 5, ["24.7407", "5.9221", "25.5918"]),
        ([612.100158, 35.0717145, 654.94], 4, ["612.10", "35.07", "654.94"]),
        ([1764.05, 2451.25], 4, ["1764", "2451"]),
        ([0.0, 13.806], 4, ["0.00", "13.81"]),
        ([0.1, 0.25], 4, ["0.10", "0.25"]),
        ([1e-12, 1.0], 4, ["1e-12", "1e+00"]),
        ([1e150], 4, ["1e+150"]),
        ([float("nan"), 2.5], 4, ["NaN", "2.5"]),
        ([], 4, []),
    ],
)
def test_numbers_of_a_column_share_their_decimals(values: list[float], digits: int, shown: list[str]) -> None:
    assert format_numbers(values, digits) == shown


def test_text_table_aligns_and_leaves_no_trailing_blanks() -> None:
    assert text_table(["a", "long"], [["x", "1"], ["yy", ""]]) == "a  long\nx     1\nyy"


def test_html_is_escaped() -> None:
    page = html_table(["a<b"], [["x & y"]], caption="<i>")
    assert "a&lt;b" in page
    assert "x &amp; y" in page
    assert "<i>" not in page


@pytest.mark.parametrize(
    ("name", "width", "short"),
    [("Days", 6, "Days"), ("temperature", 6, "tmprtr"), ("service[T.1]", 6, "s[T.1]"), ("ABCDEFGH", 6, "ABCDEFGH")],
)
def test_abbreviation_drops_vowels_then_lower_case(name: str, width: int, short: str) -> None:
    assert abbreviate(name, width) == short
