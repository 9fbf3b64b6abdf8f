"""The page for lme4's users has every function of lme4 and lmerTest, and names nothing here that does not exist."""

import re
from pathlib import Path

import pytest

import fastlmm_core
from fastlmm_core.plots.accessor import Plots
from fastlmm_core.results.structured import StructuredResult

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "from_lme4.md").read_text(encoding="utf-8")
EXPORTS = dict(line.split(": ") for line in (HERE / "golden" / "exports.txt").read_text().splitlines())
RESULTS = (fastlmm_core.LmerResult, fastlmm_core.GlmerResult, StructuredResult)


@pytest.mark.parametrize("package", EXPORTS)
def test_every_export_is_on_the_page(package):
    words = set(re.findall(r"[\w.]+", PAGE))
    words |= {word.rstrip(".") for word in words}
    assert [name for name in EXPORTS[package].split() if name not in words] == []


def test_what_the_page_names_here_exists():
    ours = [row.split(" | ")[-1] for row in PAGE.splitlines() if row.startswith("| ")]
    ours = [row.replace("m0.", "m.").replace("m1.", "m.") for row in ours]
    calls = {name for row in ours for name in re.findall(r"\bm\.(\w+)", row)} - {"design", "plot"}
    assert len(calls) >= 50
    known = {*fastlmm_core.LmerResult.__dataclass_fields__}
    assert [name for name in sorted(calls) if name not in known and not any(hasattr(c, name) for c in RESULTS)] == []
    pictures = {name for row in ours for name in re.findall(r"\bm\.plot\.(\w+)", row)}
    assert [name for name in sorted(pictures) if not hasattr(Plots, name)] == []
