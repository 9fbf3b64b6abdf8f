"""The format that results are pickled in."""

from __future__ import annotations

from typing import Any

from fastlmm_core.errors import SavedFormatError

__all__ = ["FORMAT", "read_state", "saved_state"]

FORMAT = 2
"""Raised by one whenever the attributes of a result, or what they mean, change."""

KEY = "saved format"


def saved_state(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes to pickle, with the format's number."""
    return {KEY: FORMAT, **attributes}


def read_state(state: object, what: str) -> dict[str, Any]:
    """The attributes in a pickled state.

    Raises
    ------
    SavedFormatError
        It was saved in another format.
    """
    found = state.get(KEY) if isinstance(state, dict) else None
    if not isinstance(state, dict) or found != FORMAT:
        raise SavedFormatError(
            f"this {what} was saved in format {'0' if found is None else found}, but this version of fastlmm_core "
            f"reads format {FORMAT}: load it with the version that saved it, or fit the model again"
        )
    return {name: value for name, value in state.items() if name != KEY}
