"""The cells of the tutorials on what follows a fit run as they stand."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs" / "tutorial"


@pytest.mark.parametrize("name", ["post_hoc", "power", "many_responses", "trials_growth_animals"])
def test_cells_run(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    cells = re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(cells) >= 4
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, name, "exec"), names)
