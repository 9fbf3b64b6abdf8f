"""Fixtures and settings that every test shares."""

from hypothesis import settings

# timings differ between machines, and a debug build is slow: let no example fail for that
settings.register_profile("default", deadline=None)
settings.load_profile("default")
