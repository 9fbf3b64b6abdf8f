"""Covariances of the random effects: one block a level, and jointly with the fixed effects for chosen levels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.core.threads import bounded
from fastlmm_core.errors import DataError, MemoryLimitError, ModelError
from fastlmm_core.inference.joint_inverse import JointInverse, RowSet, row_set
from fastlmm_core.inference.prediction import Targets, depends_on_unidentified

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design

__all__ = ["Levels", "joint_cov", "ranef_cov"]

Levels = Mapping[str, Sequence[Hashable]] | Sequence[Hashable]


@bounded
def ranef_cov(design: Design, core: CoreFit, *, beta_known: bool = True) -> dict[str, pd.DataFrame]:
    """Conditional covariance blocks of every level; see `LmerResult.ranef_cov`."""
    blocks = list(core.cond_var())
    if not beta_known:
        with core.workspace() as objective:
            inverse = JointInverse(objective, core.theta)
        cross = core.cross
        for group, n_block in zip(cross.groups, inverse.n_blocks, strict=True):
            half = np.linalg.solve(inverse.l_x, n_block.transpose(0, 2, 1)).transpose(0, 2, 1)
            for k, o in zip(group.terms, group.offsets, strict=True):
                t = cross.transforms[k]
                part = t @ half[:, o : o + len(t)]
                blocks[k] = blocks[k] + inverse.scale * (part @ part.transpose(0, 2, 1))
    out = {}
    for term, block in zip(design.random, blocks, strict=True):
        index = pd.MultiIndex.from_product([term.levels, term.columns], names=[term.group, "effect"])
        out[term.grp] = pd.DataFrame(block.reshape(-1, block.shape[2]), index=index, columns=list(term.columns))
    return out


@bounded
def joint_cov(design: Design, core: CoreFit, levels: Levels | None) -> pd.DataFrame:
    """Joint covariance of the fixed effects and of the random effects of chosen levels (all where None).

    One solve of the mixed-model equations a random effect chosen; see `LmerResult.cov_params`.
    """
    chosen = _chosen(design, levels)
    size = len(design.x_names) + sum(
        len(places) * len(t.columns) for t, places in zip(design.random, chosen, strict=True)
    )
    needed = 8 * size * (2 * size + sum(b.size for b in core.b))
    if needed > core.control.n_bytes:
        raise MemoryLimitError(
            f"the joint covariance of {size} effects would take {needed / 2**30:.1f} GiB, but "
            f"{core.control.n_bytes / 2**30:.1f} GiB can be used: choose fewer levels"
        )
    estimated = np.flatnonzero(~np.isnan(core.beta))
    labels: list[tuple[str, Hashable, str]] = [("fixed", "", name) for name in design.x_names]
    sets = [row_set(core.cross, np.eye(len(design.x_names))[estimated], [None] * len(design.random))]
    for k, (term, places) in enumerate(zip(design.random, chosen, strict=True)):
        l = len(term.columns)
        parts: list[tuple[NDArray[np.int64], NDArray[np.float64]] | None] = [None] * len(design.random)
        parts[k] = (np.repeat(places, l), np.tile(np.eye(l), (len(places), 1)))
        sets.append(row_set(core.cross, None, parts, n=l * len(places)))
        labels += [(term.grp, term.levels[j], column) for j in places for column in term.columns]
    rows = RowSet(
        np.concatenate([s.x for s in sets]),
        tuple(np.concatenate(codes) for codes in zip(*(s.codes for s in sets), strict=True)),
        tuple(np.concatenate(z) for z in zip(*(s.z for s in sets), strict=True)),
    )
    cov = np.full((size, size), np.nan)
    there = np.concatenate([estimated, np.arange(len(design.x_names), size)])
    with core.workspace() as objective:
        inverse = JointInverse(objective, core.theta)
        cov[np.ix_(there, there)] = inverse.scale * inverse.covariance(rows)
        if core.unidentified is not None:
            blind = there[depends_on_unidentified(Targets(rows, (), np.zeros(len(rows))), objective, core)]
            cov[blind], cov[:, blind] = np.nan, np.nan
    index = pd.MultiIndex.from_tuples(labels, names=["group", "level", "effect"])
    return pd.DataFrame(cov, index=index, columns=index)


def _chosen(design: Design, levels: Levels | None) -> list[NDArray[np.int64]]:
    """Places of the chosen levels, one array a term."""
    if levels is None:
        return [np.arange(len(term.level_set)) for term in design.random]
    if not design.random:
        raise ModelError("the model has no random effects, and so no levels")
    if not isinstance(levels, Mapping):
        levels = {design.random[0].group: [levels] if isinstance(levels, str) else levels}
    unknown = [name for name in levels if name not in {t.group for t in design.random}]
    if unknown:
        have = ", ".join(dict.fromkeys(t.group for t in design.random))
        raise DataError(f"{unknown[0]!r} is not a grouping factor of the model; they are {have}")
    out = []
    for term in design.random:
        wanted = list(levels.get(term.group, ()))
        places = pd.Index(term.levels).get_indexer(pd.Index(wanted, dtype=object)) if wanted else np.empty(0, np.int64)
        if (places < 0).any():
            raise DataError(f"{term.group} has no level {wanted[int(np.argmax(places < 0))]!r}")
        out.append(np.asarray(places, np.int64))
    return out
