"""The README's Python examples run as they stand, and print only what they print."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.splitlines()[0])
def test_example_runs(code, capsys):
    exec(compile(code, str(README), "exec"), {})
    assert ("print(" in code) == bool(capsys.readouterr().out)
