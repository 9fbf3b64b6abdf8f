"""What the kernels' import loads, and leaves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastlmm_core._native import CALLERS

SOURCES = Path(__file__).parents[2] / "src" / "fastlmm_core" / "_native"


def answer(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_blas_comes_without_the_rest_of_scipy_linalg_which_finds_it_again():
    code = """
import sys
import fastlmm_core._native
assert not [name for name in sys.modules if name.startswith("scipy.linalg")]
from fastlmm_core.core import Term, fit
import numpy as np
rng = np.random.default_rng(0)
codes, other = rng.integers(0, 9, 200), rng.integers(0, 7, 200)
fit(rng.normal(size=200), np.ones((200, 1)), [Term(codes), Term(other)])
assert "scipy.linalg" not in sys.modules, "a fit does without"
import scipy.linalg
assert scipy.linalg.cython_blas is sys.modules["scipy.linalg.cython_blas"]
assert scipy.linalg.cython_lapack.__pyx_capi__
print(scipy.linalg.solve(2.0 * np.eye(2), np.ones(2)))
print(fit(rng.normal(size=200), np.ones((200, 1)), [Term(codes), Term(other)]).converged)
"""
    assert answer(code).split() == ["[0.5", "0.5]", "True"]


def test_scipy_linalg_may_come_first():
    assert answer("import scipy.linalg\nimport fastlmm_core.core\nprint(scipy.linalg.cython_blas.__name__)").strip()


@pytest.mark.skipif(not SOURCES.is_dir(), reason="the sources are not beside the tests")
def test_every_kernel_that_calls_blas_is_known():
    texts = {path: path.read_text() for path in [*SOURCES.rglob("*.pyx"), *SOURCES.rglob("*.pxd")]}
    calls = {path for path, text in texts.items() if "scipy.linalg.cython_" in text}
    while True:  # through what they cimport inline
        names = {path.relative_to(SOURCES).with_suffix("").as_posix().replace("/", ".") for path in calls}
        headers = [name for path in calls if path.suffix == ".pxd" for name in names if name.endswith(path.stem)]
        more = {
            path
            for path, text in texts.items()
            if any(re.search(rf"_native\.{re.escape(name)} cimport", text) for name in headers)
        }
        if more <= calls:
            break
        calls |= more
    kernels = {path.relative_to(SOURCES).with_suffix("").as_posix().replace("/", ".") for path in calls}
    kernels = {name for name in kernels if (SOURCES / (name.replace(".", "/") + ".pyx")).exists()}
    assert kernels == set(CALLERS)
