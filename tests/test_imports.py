"""What an import may load: other libraries build on the array API without paying for tables and formulas."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fastlmm_core


def modules(statement: str) -> set[str]:
    """Modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    return {name.partition(".")[0] for name in modules(statement)}


@pytest.mark.parametrize("statement", ["import fastlmm_core.core", "from fastlmm_core import Control"])
def test_core_loads_neither_tables_nor_formulas(statement):
    assert loaded_by(statement).isdisjoint({"pandas", "formulaic", "narwhals", "polars", "pyarrow", "matplotlib"})


def test_a_formula_of_columns_loads_neither_formulaic_nor_what_it_loads():
    fit = "from fastlmm_core import lmer, load_dataset\n"
    fit += 'lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).coef_table()\n'
    heavy = {"formulaic", "narwhals", "matplotlib", "scipy.interpolate", "scipy.optimize", "scipy.sparse.csgraph"}
    heavy -= modules("import pandas, scipy.linalg, scipy.sparse, scipy.special")  # older ones load more by themselves
    assert heavy.isdisjoint(modules(fit))


def test_an_ordinary_fit_loads_no_other_kind_of_model():
    fit = "from fastlmm_core import lmer, load_dataset\n"
    fit += 'lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))'
    others = {"residuals", "structures", "iterative.estimates", "streaming", "glmm", "many.responses"}
    other = {f"fastlmm_core.core.{name}" for name in others} | {
        "scipy.special",
        "scipy.sparse",
        "fastlmm_core.families",
    }
    other -= modules("import pandas, scipy.linalg")
    assert other.isdisjoint(modules(fit))
    of_core = {name for name in other if name.startswith("fastlmm_core.core")}
    assert of_core.isdisjoint(modules(f"{fit}.coef_table()"))


@pytest.mark.parametrize("package", ["fastlmm_core.core", "fastlmm_core.core.iterative"])
def test_every_name_of_the_array_api_resolves(package):
    names = import_module(package).__all__
    answer = subprocess.run(
        [sys.executable, "-c", f"from {package} import *\nprint(*[n for n in {names} if not callable(globals()[n])])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() in ([], ["glmm", "iterative"])
    with pytest.raises(AttributeError, match="no attribute 'fti'"):
        _ = import_module(package).fti


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
    loaded_by("import fastlmm_core as f; f.errors.DataError; f.core.fit; f.core.glmm.Model; f.formula")


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'lmre'"):
        _ = fastlmm_core.lmre


FLOORS = ("families", "core", "formula", "fitting", "inference", "results", "adapters")
"""Folders of the package from the lowest up; `formula` stands beside `core`, of whose engine it knows nothing."""

PACKAGE = Path(fastlmm_core.__file__).parent
ENGINE = {"fastlmm_core._native", "fastlmm_core.core"}
OF_COLUMNS = "fastlmm_core._native.rows.columns"  # loops over single columns, of a table as of a matrix


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a source file imports anywhere in it, types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("fastlmm_core.")}


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_a_higher_one(floor):
    higher = {f"fastlmm_core.{name}" for name in FLOORS[FLOORS.index(floor) + 1 :]}
    upward = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted((PACKAGE / floor).rglob("*.py"))
        for name in imports_of(path)
        if ".".join(name.split(".")[:2]) in higher
    }
    assert not upward


def test_the_formula_floor_does_not_know_the_engine():
    known = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted((PACKAGE / "formula").rglob("*.py"))
        for name in imports_of(path)
        if ".".join(name.split(".")[:2]) in ENGINE and not name.startswith(OF_COLUMNS)
    }
    assert not known


ABOVE_THE_DOOR = ("fitting", "inference", "results", "adapters")
"""Floors that ask an `Evaluation`, never the kernels behind it."""

BEHIND_THE_DOOR = {"evaluator", "arrays", "working_evaluator"}
TAILS = {"Tail", "DenseTail", "SparseTail", "CholmodTail", "EmptyTail", "Evaluator"}


@pytest.mark.parametrize("floor", ABOVE_THE_DOOR)
def test_nobody_reaches_past_the_door(floor):
    """No kernel is imported, no evaluator or index array of a plan is touched, no engine is told apart by its class."""
    found = set()
    for path in sorted((PACKAGE / floor).rglob("*.py")):
        where = str(path.relative_to(PACKAGE))
        found |= {(where, name) for name in imports_of(path) if name.startswith("fastlmm_core._native")}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in BEHIND_THE_DOOR and not of_itself(node):
                found.add((where, node.attr))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                found |= {(where, name.id) for name in ast.walk(node) if isinstance(name, ast.Name)} & {
                    (where, name) for name in TAILS
                }
    assert not found


@pytest.mark.parametrize("floor", ABOVE_THE_DOOR)
def test_what_is_taken_from_core_is_what_its_modules_offer(floor):
    found = set()
    for path in sorted((PACKAGE / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fastlmm_core.core."):
                names = {alias.name for alias in node.names} - set(import_module(node.module).__all__)
                found |= {(path.name, node.module, name) for name in names}
    assert not found


def of_itself(node):
    """Whether an attribute is the object's own: a writer's `self.arrays` is no plan's."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "writer")


def test_no_module_is_hidden_by_a_function_of_its_name():
    for init in sorted(PACKAGE.rglob("__init__.py")):
        package = ".".join(("fastlmm_core", *init.parent.relative_to(PACKAGE).parts))
        modules = {path.stem for path in init.parent.iterdir()}
        brought = {
            alias.asname or alias.name
            for node in ast.walk(ast.parse(init.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module != package
            for alias in node.names
        }
        assert not modules & brought, package
