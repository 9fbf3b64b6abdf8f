"""What an import may load: other libraries build on the array API without paying for tables and formulas."""

import subprocess
import sys

import pytest

import fastlmm_core


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


@pytest.mark.parametrize("statement", ["import fastlmm_core.core", "from fastlmm_core import Control"])
def test_core_loads_neither_tables_nor_formulas(statement):
    assert loaded_by(statement).isdisjoint({"pandas", "formulaic", "narwhals", "polars", "pyarrow", "matplotlib"})


def test_package_itself_loads_nothing_heavy():
    assert loaded_by("import fastlmm_core").isdisjoint({"numpy", "scipy", "pandas", "formulaic"})


def test_core_prints_nothing():
    answer = subprocess.run([sys.executable, "-c", "import fastlmm_core.core"], capture_output=True, check=True)
    assert (answer.stdout, answer.stderr) == (b"", b"")


@pytest.mark.parametrize("name", fastlmm_core.__all__)
def test_every_public_name_resolves(name):
    assert getattr(fastlmm_core, name) is not None
    assert name in dir(fastlmm_core)


def test_table_of_lazy_names_is_complete():
    assert set(fastlmm_core._LAZY) | {"__version__"} == set(fastlmm_core.__all__)


def test_subpackages_need_no_import_of_their_own():
    loaded_by("import fastlmm_core; fastlmm_core.errors.DataError; fastlmm_core.core.fit; fastlmm_core.formula")


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'lmre'"):
        _ = fastlmm_core.lmre
