"""The package's exceptions and warnings: one small tree under `FastLMMError` and one under `FastLMMWarning`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

__all__ = [
    "BoundaryWarning",
    "ConvergenceWarning",
    "DataError",
    "DependencyError",
    "EmptyLevelWarning",
    "FastLMMError",
    "FastLMMWarning",
    "FormulaError",
    "FormulaWarning",
    "IdentifiabilityWarning",
    "InUseError",
    "LaplaceWarning",
    "MemoryLimitError",
    "ModelError",
    "NotSavedError",
    "NumericalError",
    "RankWarning",
    "RepeatedValuesError",
    "SavedFormatError",
    "SeparationWarning",
    "SpellingError",
    "StreamedError",
    "UnitError",
    "near_names",
    "no_such",
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


class RepeatedValuesError(ModelError):
    """Residuals so much smaller than the groups' effects that double precision cannot tell them from zero.

    Attributes
    ----------
    ratio : float
        Norm of the residuals over that of the response beside the fixed effects.
    term : int
        A random term of the grouping factor whose levels repeat one value.
    """

    def __init__(self, ratio: float, term: int, name: str = "") -> None:
        super().__init__(
            f"the rows of a level of {name or f'random term {term}'} repeat one value (what differs is {ratio:.1g} of "
            "the response): the residual variance cannot be told from zero. Fit one row a level, or the means"
        )
        self.ratio, self.term, self.name = ratio, term, name

    def __reduce__(self) -> tuple[type[RepeatedValuesError], tuple[float, int, str]]:
        return type(self), (self.ratio, self.term, self.name)


class UnitError(DataError):
    """Values so large or so small that their squares overflow or vanish.

    Attributes
    ----------
    what : str
    largest : float
        Largest absolute value.
    place : tuple (term, column) or None
        Of a column: the random term it belongs to, None for the fixed effects.
    """

    def __init__(self, what: str, largest: float, place: tuple[int | None, int] | None = None) -> None:
        fate = "overflow" if largest > 1.0 else "vanish"
        super().__init__(f"{what} has values up to {largest:.3g}, whose squares {fate}: choose another unit")
        self.what, self.largest, self.place = what, largest, place

    def __reduce__(self) -> tuple[type[UnitError], tuple[str, float, tuple[int | None, int] | None]]:
        return type(self), (self.what, self.largest, self.place)


class NumericalError(FastLMMError, ArithmeticError):
    """A factorisation broke down at the parameters asked for."""


class InUseError(FastLMMError, RuntimeError):
    """A workspace was called while another call on it had not returned: from a second thread, or from a callback."""


class MemoryLimitError(FastLMMError, MemoryError):
    """The predicted memory of the chosen engine exceeds what the machine has."""


class SavedFormatError(FastLMMError, ValueError):
    """A result was saved, pickled or in a file, by a version of this package that writes another format."""


class NotSavedError(ModelError, AttributeError):
    """A result that was saved without its data is asked for what needs its rows."""

    def __init__(self, what: str = "") -> None:
        super().__init__(
            f"{what}{': ' if what else ''}a result saved without its data has no rows: pass newdata=, or save the fit "
            "with data=True for all that needs them"
        )


class StreamedError(ModelError):
    """A fit whose rows were streamed is asked for what needs them."""

    def __init__(self, what: str = "") -> None:
        super().__init__(
            f"{what}{': ' if what else ''}the rows of this fit were streamed and are not kept: predict(batch) takes "
            "rows batch by batch, and for all else that needs them fit a table that is in memory"
        )


class SpellingError(FastLMMError, AttributeError, TypeError):
    """A name that another package has for something: the message says what it is called here."""


class FastLMMWarning(UserWarning):
    """Base of every warning this package issues."""


class ConvergenceWarning(FastLMMWarning):
    """The optimiser stopped before its criterion was met."""


class MonteCarloWarning(FastLMMWarning):
    """The random probes of the iterative engine leave more error in the variance parameters than was asked for."""


class IdentifiabilityWarning(FastLMMWarning):
    """The criterion does not depend on some variances: there is no estimate of them, or of what depends on them."""


class RankWarning(FastLMMWarning):
    """Fixed-effects columns were dropped because they depend linearly on earlier ones."""


class BoundaryWarning(FastLMMWarning):
    """A family's own parameter was estimated at its limit, where a simpler family is enough."""


class SeparationWarning(FastLMMWarning):
    """Some coefficients have no finite estimate: columns separate successes from failures, or zeros from counts."""


class LaplaceWarning(FastLMMWarning):
    """Laplace's approximation may be rough, as there are few binary rows a level."""


class EmptyLevelWarning(FastLMMWarning):
    """A grouping factor given as codes has no row of level 0, as where codes begin at one."""


class FormulaWarning(FastLMMWarning):
    """The formula means something that its writer may not have meant."""


NEAR = 0.65
"""Likeness of two names, `difflib`'s ratio, from which one may be meant by the other: "Dayz" and "Days" have 0.75."""


def near_names(name: object, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that one may have been meant by, the likeliest first; case does not count."""
    from difflib import get_close_matches

    by_folded: dict[str, list[str]] = {}
    for other in known:
        by_folded.setdefault(other.casefold(), []).append(other)
    near = get_close_matches(str(name).casefold(), by_folded, cutoff=NEAR)
    return [other for folded in near for other in by_folded[folded]][:3]


def no_such(what: str, given: object, known: Iterable[str]) -> str:
    """That an option does not exist, which one may have been meant, and which there are."""
    names = list(known)
    near = near_names(given, names) if isinstance(given, str) else []
    meant = f"did you mean {near[0]!r}? Use" if near else "use"
    return f"{what} {given!r} does not exist: {meant} one of {', '.join(map(repr, names))}"


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
