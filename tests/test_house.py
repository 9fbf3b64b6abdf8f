"""What the source looks like: sizes of files and functions, and maps that lead somewhere."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("python", "src", "tests", "benchmarks", "docs", "packaging")
KINDS = {".py", ".pyx", ".pxd", ".pyi", ".h"}
MOST_LINES = 500
LONGEST_FUNCTION = 80
"""Lines from `def` to the last statement, the docstring left out: public functions explain each argument in theirs."""


def sources(*kinds: str) -> list[Path]:
    """Files of the project that somebody wrote."""
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in kinds and "_build" not in path.parts
    ]


def lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Names and lines of the functions of a Python file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            text = ast.get_docstring(node) is not None
            yield node.name, node.end_lineno - node.lineno + 1 - text * (first.end_lineno - first.lineno + 1)


DEFINITION = re.compile(r"( *)(?:def|cpdef|cdef(?! class| extern| struct| enum| packed)) [^=]*?(\w+)\(")
DOCSTRING = re.compile(r'^ *r?"""(?:.|\n)*?"""\n', re.MULTILINE)


def compiled_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """The same of a Cython file, by indentation."""
    lines = DOCSTRING.sub("", path.read_text(encoding="utf-8")).splitlines()
    for start, line in enumerate(lines):
        found = DEFINITION.match(line)
        if found is None:
            continue
        end, brackets = start, 0
        for k in range(start, len(lines)):
            inside = brackets > 0 or k == start or lines[k].startswith(found[1] + " ")
            if not inside and lines[k].strip():
                break
            brackets += lines[k].count("(") - lines[k].count(")")
            end = k if lines[k].strip() else end
        yield found[2], end - start + 1


def test_no_file_is_longer_than_a_subject():
    sizes = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in sources(*KINDS)}
    long = {name: n for name, n in sizes.items() if n > MOST_LINES}
    assert not long, "split by subject"


def test_no_function_is_longer_than_a_screen():
    found = [(path, *one) for path in sources(".py") for one in lengths(path)]
    found += [(path, *one) for path in sources(".pyx", ".pxd") for one in compiled_lengths(path)]
    assert found
    long = {f"{path.relative_to(ROOT)}: {name}": n for path, name, n in found if n > LONGEST_FUNCTION}
    assert not long, "split where a part has a name of its own"


def test_cython_functions_are_measured_to_their_last_line(tmp_path):
    path = tmp_path / "a.pyx"
    path.write_text(
        'cdef class A:\n    """Doc."""\n\n    cdef int f(self, int a,\n               int b) noexcept nogil:\n'
        '        """Two\n        lines.\n        """\n        a = b\n\n        return a\n\n    def g(self):\n'
        "        pass\n\n\ncdef inline void h() noexcept:\n    pass\n"
    )
    assert list(compiled_lengths(path)) == [("f", 5), ("g", 2), ("h", 2)]


MAPS = ("CONTRIBUTING.md", "docs/design.md", "docs/engine.md")
PLACE = re.compile(r"`([\w.]+(?:/[\w.]+)*/(?:[\w.]+\.(?:pyx|pxd|py|md))?|(?:[\w.]+/)+[\w.]+\.(?:pyx|pxd|py|md))`")
PROJECT = pytest.mark.skipif(not (ROOT / "src").exists(), reason="of the whole project")


@PROJECT
@pytest.mark.parametrize("name", MAPS)
def test_places_that_a_map_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    places = {place for place in PLACE.findall(text) if not place.startswith(("build/", ".ci/"))}
    assert len(places) > 5
    there = [f"/{path.relative_to(ROOT)}" + "/" * path.is_dir() for f in FOLDERS for path in (ROOT / f).rglob("*")]
    there += [f"/{folder}/" for folder in FOLDERS]
    assert not {place for place in places if not any(path.endswith(f"/{place}") for path in there)}


PROSE = (
    *("CONTRIBUTING.md", "SECURITY.md", "docs/backend.md", "docs/convergence.md", "docs/design.md", "docs/engines.md"),
    *("docs/inference.md", "docs/start.md"),
)
LONGEST_LINE = 120


@PROJECT
@pytest.mark.parametrize("name", PROSE)
def test_prose_is_wrapped_as_code_is(name):
    """Tables and what is quoted from a terminal are as wide as they are."""
    parts = (ROOT / name).read_text(encoding="utf-8").split("```")
    lines = [line for prose in parts[::2] for line in prose.splitlines() if not line.startswith(("|", "  |", "    "))]
    assert lines
    assert not [line for line in lines if len(line) > LONGEST_LINE]


@PROJECT
def test_every_folder_is_on_the_map():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = {
        path.name
        for base in ("python/fastlmm_core", "src/fastlmm_core/_native")
        for path in (ROOT / base).rglob("*")
        if path.is_dir() and any(path.iterdir()) and path.name != "__pycache__"
    }
    assert not {folder for folder in found if f"{folder}/`" not in text}


@PROJECT
def test_attributes_that_are_made_when_asked_for_have_no_lock():
    """Up to Python 3.11 functools' own have one a class, which a forked child would inherit held."""
    named = re.compile(r"functools import .*cached_property|functools\.cached_property")
    files = (ROOT / "python" / "fastlmm_core").rglob("*.py")
    assert {path.name for path in files if named.search(path.read_text(encoding="utf-8"))} == {"lazy.py"}


@PROJECT
def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    for package in ("fastlmm_core", "fastlmm_core.core", "fastlmm_core.core.glmm"):
        module = import_module(package)
        objects = {name: getattr(module, name) for name in module.__all__}
        public = {name for name, value in objects.items() if callable(value) and not is_error(value)}
        assert not public - words, package


def is_error(value: object) -> bool:
    """Errors and warnings are listed as one module."""
    return isinstance(value, type) and issubclass(value, BaseException)
