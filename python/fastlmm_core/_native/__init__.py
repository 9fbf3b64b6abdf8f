"""The compiled kernels, loaded with threads that sleep while they wait, and without the rest of `scipy.linalg`.

The kernels alternate between OpenMP loops and BLAS, which have a thread pool each. OpenMP's threads spin after a loop
by default and take the processors that BLAS needs next: a fit on two busy cores then takes two to ten times as long.
The policy is read from the environment once, when the OpenMP library is loaded, so it is set for that moment only, and
a user's own setting is respected.

BLAS and LAPACK are called through two compiled modules of `scipy.linalg`, which import nothing of SciPy. Its others
take longer to import than this package: so the two are there by themselves while the kernels load that call them, and
`scipy.linalg` brings them in again, the same objects, when it is imported.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

VARIABLE = "OMP_WAIT_POLICY"

CAPSULES = ("scipy.linalg.cython_blas", "scipy.linalg.cython_lapack")
"""What the kernels call BLAS and LAPACK through."""

CALLERS = (
    "criterion.information",
    "criterion.patterns",
    "criterion.solver",
    "criterion.start",
    "criterion.traces",
    "criterion.trust_region",
    "rows.responses",
    "tail.cholmod",
    "tail.sparse",
    "tail.supernodal",
    "tail.tail",
)
"""The kernels that do."""


def load_capsules() -> list[str]:
    """Import `CAPSULES` without the package around them, unless that is imported already; returns those imported."""
    if "scipy.linalg" in sys.modules:
        return []
    folders = [os.path.join(folder, "linalg") for folder in import_module("scipy").__path__]
    loaded = []
    for name in CAPSULES:
        spec = PathFinder.find_spec(name, folders)
        if spec is not None and spec.loader is not None and name not in sys.modules:
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[name] = module
            loaded.append(name)
    return loaded


def load() -> None:
    """Import the kernels that call BLAS, and the OpenMP library with them."""
    loaded: list[str] = []
    with suppress(ImportError):  # the kernels import them with their package then
        loaded = load_capsules()
    given = os.environ.get(VARIABLE)
    if given is None:
        os.environ[VARIABLE] = "passive"
    try:
        for name in CALLERS:
            import_module(f"fastlmm_core._native.{name}")
    finally:
        if given is None:
            del os.environ[VARIABLE]
        for name in loaded:
            sys.modules.pop(name, None)


load()
