"""Known relationships between the levels of grouping factors: which term has which, and its levels' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.formula.levels import Levels

if TYPE_CHECKING:
    from fastlmm_core.formula.design import RandomDesign

__all__ = ["LevelsKnown", "with_relationships"]


class LevelsKnown(Protocol):
    """A relationship as this floor sees it: names of its levels, None where they are the factor's own, in order."""

    @property
    def names(self) -> NDArray[np.object_] | None:
        """(q,)."""
        ...

    def __len__(self) -> int: ...


def with_relationships(
    designs: Sequence[RandomDesign], known: Mapping[str, tuple[str, Any]]
) -> tuple[RandomDesign, ...]:
    """The terms with their relationships, coded by the relationships' levels; levels without rows stay.

    Parameters
    ----------
    designs : sequence of RandomDesign
    known : mapping
        Grouping factor -> what the user called the argument, and the relationship.

    Raises
    ------
    ModelError
        No term has that grouping factor.
    DataError
        The relationship lacks levels of the factor.
    """
    groups = list(dict.fromkeys(d.group for d in designs))
    for name, (argument, _) in known.items():
        if name not in groups:
            raise ModelError(
                f"{argument}[{name!r}] belongs to no random-effects term; the grouping factors are {', '.join(groups)}"
            )
    recoded: dict[str, tuple[NDArray[np.int32], Levels]] = {}
    out = []
    for design in designs:
        if design.group not in known:
            out.append(design)
            continue
        argument, relationship = known[design.group]
        if design.group not in recoded:
            recoded[design.group] = _recode(design, f"{argument}[{design.group!r}]", relationship)
        codes, levels = recoded[design.group]
        out.append(replace(design, codes=codes, level_set=levels, relationship=relationship))
    return tuple(out)


def _recode(design: RandomDesign, name: str, relationship: LevelsKnown) -> tuple[NDArray[np.int32], Levels]:
    own = design.level_set
    if relationship.names is None:
        if len(relationship) != len(own):
            raise DataError(
                f"{name} has {len(relationship)} rows without names, but {design.group} has {len(own)} levels: name "
                "them, by a DataFrame's index"
            )
        return design.codes, own
    levels = Levels(relationship.names)
    place = pd.Index(levels.text).get_indexer(pd.Index(own.text))
    if (place < 0).any():
        absent = own.text[place < 0]
        listed = ", ".join(map(repr, absent[:5])) + (", ..." if len(absent) > 5 else "")
        raise DataError(f"{name} lacks {len(absent)} of {len(own)} levels of {design.group}: {listed}")
    return place.astype(np.int32)[design.codes], levels
