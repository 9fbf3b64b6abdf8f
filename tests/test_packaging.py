"""The recipes that other machines build from say what pyproject.toml says, and name files that exist."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "packaging" / "conda" / "recipe.yaml"

pytestmark = pytest.mark.skipif(not (ROOT / "packaging").exists(), reason="of the whole project")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def needs(lines):
    """Names and versions of requirements, however they are spaced."""
    found = (re.match(r"\s*-?\s*([A-Za-z][\w-]*)\s*(>=[\d.]+)?", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


def test_the_conda_recipe_needs_what_the_package_needs(project):
    text = RECIPE.read_text(encoding="utf-8")
    host, run = re.search(r"  host:\n(.*?)  run:\n(.*?)tests:", text, re.DOTALL).groups()
    run_needs = needs(run.splitlines())
    assert run_needs.pop("python") is None
    assert run_needs == needs(project["project"]["dependencies"])
    host_needs = needs(host.splitlines())
    for name, version in needs(project["build-system"]["requires"]).items():
        assert host_needs[name] == version, name
    for file in re.search(r"license_file: \[(.*)\]", text)[1].split(", "):
        assert (ROOT / file).is_file()
    assert re.search(r"^  version: (.*)$", text, re.MULTILINE)[1] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_wheels_are_built_from_files_that_exist_with_what_a_step_has_made(project):
    settings = project["tool"]["cibuildwheel"]
    steps = [settings[system]["before-all"] for system in ("linux", "macos")]
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    for step in steps:
        assert "$" not in step  # nothing sets a variable
        assert (ROOT / re.search(r"python3? (\S+)", step)[1]).is_file()
        sources = re.search(r"--suitesparse (\S+)", step)[1]
        assert f"-C {sources} " in workflow
    assert re.findall(r"suitesparse-cholmod\S*", settings["windows"]["before-all"]) == [
        "suitesparse-cholmod[core,partition]:x64-windows"  # the other features are under the GPL
    ]
    assert set(settings["test-extras"]) <= set(project["project"]["optional-dependencies"])
    supported = {c.rsplit(" ", 1)[1] for c in project["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)}
    built = {f"{tag[2]}.{tag[3:]}" for tag in re.findall(r"cp3\d+", settings["build"])}
    assert supported <= built
