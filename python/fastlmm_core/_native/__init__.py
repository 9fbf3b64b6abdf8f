"""The compiled kernels; they load with threads that sleep while they wait, whichever is imported first.

The kernels alternate between OpenMP loops and BLAS, which have a thread pool each. OpenMP's threads spin after a loop
by default and take the processors that BLAS needs next: a fit on two busy cores then takes two to ten times as long.
The policy is read from the environment once, when the OpenMP library is loaded, so it is set for that moment only, and
a user's own setting is respected.
"""

from __future__ import annotations

import os

VARIABLE = "OMP_WAIT_POLICY"


def load() -> None:
    """Import one kernel, and the OpenMP library with it."""
    given = os.environ.get(VARIABLE)
    if given is None:
        os.environ[VARIABLE] = "passive"
    try:
        import fastlmm_core._native.tail.tail  # noqa: F401
    finally:
        if given is None:
            del os.environ[VARIABLE]


load()
