"""The README's Python examples run as they stand, one after another, and print only what they print."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


def test_examples_run(capsys):
    names = {}  # a reader pastes them into one session
    for code in EXAMPLES:
        exec(compile(code, str(README), "exec"), names)
        assert ("print(" in code) == bool(capsys.readouterr().out), code
