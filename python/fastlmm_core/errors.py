"""The package's exceptions and warnings: one small tree under `FastLMMError` and one under `FastLMMWarning`."""

from __future__ import annotations

import sys
import warnings

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "DependencyError",
    "EmptyLevelWarning",
    "FastLMMError",
    "FastLMMWarning",
    "FormulaError",
    "FormulaWarning",
    "InUseError",
    "MemoryLimitError",
    "ModelError",
    "NumericalError",
    "RankWarning",
    "SavedFormatError",
    "SpellingError",
    "warn",
    "warn_once",
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


class SavedFormatError(FastLMMError, ValueError):
    """A pickled result was saved by a version of this package that writes another format."""


class SpellingError(FastLMMError, AttributeError, TypeError):
    """A name that another package has for something: the message says what it is called here."""


class FastLMMWarning(UserWarning):
    """Base of every warning this package issues."""


class ConvergenceWarning(FastLMMWarning):
    """The optimiser stopped before its criterion was met."""


class MonteCarloWarning(FastLMMWarning):
    """The random probes of the iterative engine leave more error in the variance parameters than was asked for."""


class RankWarning(FastLMMWarning):
    """Fixed-effects columns were dropped because they depend linearly on earlier ones."""


class EmptyLevelWarning(FastLMMWarning):
    """A grouping factor given as codes has no row of level 0, as where codes begin at one."""


class FormulaWarning(FastLMMWarning):
    """The formula means something that its writer may not have meant."""


_BETWEEN = ("fastlmm_core", "contextlib", "functools")  # modules whose frames may stand between a warning and the user
_SAID: set[str] = set()


def warn(message: str, category: type[FastLMMWarning]) -> None:
    """Warn at the line of the user's code that led here, however many of the package's calls lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_once(message: str, category: type[FastLMMWarning]) -> None:
    """`warn`, the first time in a process that there is this to say."""
    if message not in _SAID:
        _SAID.add(message)
        warn(message, category)
