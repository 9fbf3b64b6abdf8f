"""Settings that every test shares."""

import os

from hypothesis import settings

# no deadline: machines differ and a debug build is slow
# in CI the same examples every time, so that a failure is due to the change
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
