"""Compact letter displays: levels that share a letter do not differ significantly.

Insert and absorb (Piepho 2004): begin with one letter for all levels; for each pair that differs, every letter that
both have is replaced by two, one without either of them; letters whose levels another letter also has go.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["compact_letters"]


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
