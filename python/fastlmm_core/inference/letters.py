"""Compact letter displays: levels that share a letter do not differ significantly.

Insert and absorb (Piepho 2004): begin with one letter for all levels; for each pair that differs, every letter that
both have is replaced by two, one without either of them; letters whose levels another letter also has go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from fastlmm_core.inference.estimates import Estimates
from fastlmm_core.inference.levels import checked_level

__all__ = ["compact_letters", "letters"]

LETTERS_NOTE = "sharing a letter is no evidence of equality: it says only that no difference was found at this level"


def letters(estimates: Estimates, alpha: float, adjust: str) -> pd.DataFrame:
    """The table of `Estimates.letters`."""
    alpha = checked_level(alpha, "alpha")
    frame = estimates.to_frame(tests=False)
    pairs = (
        estimates.contrast("pairwise", adjust=adjust)
        if estimates.scale == "link"
        else replace(estimates, scale="link").contrast("pairwise", adjust=adjust)
    )
    p = pairs.to_frame()["p"].to_numpy()
    marks = np.full(len(estimates), "", dtype=object)
    order, at = [], 0
    for group in estimates.groups():
        i, j = np.triu_indices(len(group), 1)
        different = p[at : at + len(i)] < alpha
        at += len(i)
        sorted_ = np.argsort(
            np.where(np.isnan(estimates.estimate[group]), np.inf, estimates.estimate[group]), kind="stable"
        )
        found = compact_letters(
            len(group), zip(i[different].tolist(), j[different].tolist(), strict=True), sorted_.tolist()
        )
        marks[group] = found
        order += group[sorted_].tolist()
    marks[~estimates.estimable] = ""
    frame["group"] = marks
    frame = frame.iloc[order].reset_index(drop=True)
    frame.attrs["notes"] = [*pairs.all_notes(), LETTERS_NOTE]
    return frame


def compact_letters(n: int, different: Iterable[tuple[int, int]], order: list[int]) -> list[str]:
    """Letters of n levels.

    Parameters
    ----------
    n : int
    different : pairs of int
        Levels that differ.
    order : list of int
        The levels from the first to the last that should have letters in alphabetical order.
    """
    sets: list[frozenset[int]] = [frozenset(range(n))]
    for i, j in different:
        split: list[frozenset[int]] = []
        for letter in sets:
            split += [letter - {i}, letter - {j}] if i in letter and j in letter else [letter]
        unique = list(dict.fromkeys(split))
        sets = [a for a in unique if not any(a < b for b in unique)]
    place = {level: at for at, level in enumerate(order)}
    sets.sort(key=lambda letter: sorted(place[level] for level in letter))
    return ["".join(_letter(k) if level in letter else "" for k, letter in enumerate(sets)) for level in range(n)]


def _letter(k: int) -> str:
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return alphabet[k] if k < len(alphabet) else f"({k + 1})"
