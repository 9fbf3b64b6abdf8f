"""Compile `kernels.pyx` against the sources it looks into, on first use and after any change of either."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from benchmarks.machine import ROOT

__all__ = ["kernels"]

HERE = Path(__file__).parent
SETUP = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
source, include = sys.argv.pop(), sys.argv.pop()
modules = cythonize(Extension("kernels", [source]), include_path=[include], language_level=3, quiet=True)
setup(name="kernels", ext_modules=modules)
"""


def kernels() -> ModuleType:
    """The compiled window on the kernels."""
    sources = [HERE / "kernels.pyx", *sorted((ROOT / "src").rglob("*.pxd"))]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / "build" / "benchmarks" / f"micro-{key}"
    path = folder / f"kernels{EXTENSION_SUFFIXES[0]}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Cython writes its C beside the source: give it a copy
        (folder / "kernels.pyx").write_text((HERE / "kernels.pyx").read_text())
        command = [sys.executable, "-c", SETUP, "-q", "build_ext", "--inplace", str(ROOT / "src"), "kernels.pyx"]
        subprocess.run(command, cwd=folder, check=True)
    spec = importlib.util.spec_from_file_location("kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
