"""The package's exceptions and warnings: one small tree under `FastLMMError` and one under `FastLMMWarning`."""

from __future__ import annotations

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "DependencyError",
    "FastLMMError",
    "FastLMMWarning",
    "FormulaError",
    "InUseError",
    "MemoryLimitError",
    "ModelError",
    "NumericalError",
    "RankWarning",
]


class FastLMMError(Exception):
    """Base of every error this package raises on purpose."""


class FormulaError(FastLMMError, ValueError):
    """The formula cannot be read: syntax, no random term, an unparenthesised bar."""


class DataError(FastLMMError, ValueError):
    """The data do not fit the request: a missing column, a non-finite value, a wrong length, an unknown level."""


class DependencyError(FastLMMError, ImportError):
    """An optional package that the request needs is not installed."""


class ModelError(FastLMMError, ValueError):
    """The data are sound but the model cannot be fitted to them, or an option does not exist."""


class NumericalError(FastLMMError, ArithmeticError):
    """A factorisation broke down at the parameters asked for."""


class InUseError(FastLMMError, RuntimeError):
    """A workspace was called while another call on it had not returned: from a second thread, or from a callback."""


class MemoryLimitError(FastLMMError, MemoryError):
    """The predicted memory of the chosen engine exceeds what the machine has."""


class FastLMMWarning(UserWarning):
    """Base of every warning this package issues."""


class ConvergenceWarning(FastLMMWarning):
    """The optimiser stopped before its criterion was met."""


class RankWarning(FastLMMWarning):
    """Fixed-effects columns were dropped because they depend linearly on earlier ones."""
