"""Rows beside those of a fit, and what the fit's residuals say about theirs.

For a new row of subject i, with r (m,) the covariances of its residual with those of the subject's rows, R theirs and
r_0 its own variance,

    e_0 = a'e + nu,     a = R^-1 r,     Var(nu) = r_0 - r'R^-1 r,     nu independent of all of y                    (1)

so that a'(y - X beta - Z b) is the residual's best linear prediction (Goldberger 1962; kriging where positions are
places), and what is left of it nu. All is relative to sigma^2 of the working coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.residuals.moments import Batch
from fastlmm_core.core.residuals.residual import Residual

if TYPE_CHECKING:
    from fastlmm_core.core.residuals.crossed import CrossedModel
    from fastlmm_core.core.residuals.fit import PatternModel

__all__ = ["Meeting", "NewRows", "ResidualRows", "meetings", "residual_inverses"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

CHUNK = 1 << 20
"""Entries of the matrices that are held at a time."""


@dataclass(frozen=True, eq=False)
class NewRows:
    """Rows that are predicted, as a residual structure sees them.

    Attributes
    ----------
    subject : (n,) int64
        Of the fit's, -1 for any other: nothing is known of its residual then.
    positions : (n,) int64
    coordinates : (T, d) or None
        Of the positions, the fit's first.
    group : (n,) int64 or None
    dispersion : (n, e) or None
    weights : (n,)
        The residual variance is divided by these.
    """

    subject: Index
    positions: Index
    coordinates: Array | None
    group: Index | None
    dispersion: Array | None
    weights: Array


@dataclass(frozen=True, eq=False)
class Meeting:
    """New rows beside units of one batch.

    Attributes
    ----------
    batch : int
    new : (k,) int64
        New rows.
    rows : (k, m) int64
        The fit's rows of the unit that each of them meets.
    pattern : (k,) int64
    """

    batch: int
    new: Index
    rows: Index
    pattern: Index


def meetings(parts: Sequence[Batch], unit: Index, new: Index, met: Index) -> Iterator[Meeting]:
    """Pairs of new rows and units, by batch and in pieces that fit into memory.

    Parameters
    ----------
    parts : sequence of Batch
    unit : (n,) int64
        Of the fit's rows.
    new, met : (k,) int64
        A new row, and the unit that it meets.
    """
    n_units = int(unit.max()) + 1 if len(unit) else 0
    batch, place = np.full(n_units, -1, np.int64), np.zeros(n_units, np.int64)
    for number, part in enumerate(parts):
        mine = unit[part.units[:, 0]]
        batch[mine], place[mine] = number, np.arange(len(mine))
    for number, part in enumerate(parts):
        chosen = np.flatnonzero(batch[met] == number)
        step = max(1, CHUNK // part.rows.shape[1] ** 2)
        for at in range(0, len(chosen), step):
            piece = chosen[at : at + step]
            which = place[met[piece]]
            yield Meeting(number, new[piece], part.units[which], part.pattern[which])


class ResidualRows:
    """Equation (1) for new rows of a model, at any parameters.

    Parameters
    ----------
    model : PatternModel or CrossedModel
    new : NewRows
    """

    def __init__(self, model: PatternModel | CrossedModel, new: NewRows) -> None:
        within, residual = model.model, model.residual
        self.within, self.new, self.subject = within, new, residual.subject.astype(np.int64)
        n, k = len(residual.subject), len(new.subject)
        T = residual.n_positions if new.coordinates is None else len(new.coordinates)
        own = np.zeros(n, np.int64) if residual.kind == "none" else residual.positions
        group = None
        if residual.group is not None:
            group = np.append(residual.group, np.zeros(k, np.int64) if new.group is None else new.group)
        both = replace(
            residual,
            subject=np.append(residual.subject, new.subject),
            positions=np.append(own, new.positions),
            n_positions=T,
            coordinates=new.coordinates,
            group=group,
            dispersion=None,
        )
        self.log_sd = _log_sd(model, both, new, n)
        positions = np.arange(n + k) if residual.kind == "none" else both.cells
        self.shape, self.own, self.positions = both.shape(), positions[:n], positions[n:]

    def variances(self, phi: Array) -> Array:
        """r_0 (n,), weights included."""
        at = self.positions
        c = self.shape.values(phi[self.within.of_shape], self.shape.keys(at, at))[0]
        return np.asarray(c * np.exp(2.0 * self.log_sd @ phi[self.within.of_sd]) / self.new.weights)

    def covariances(self, phi: Array, meeting: Meeting) -> Array:
        """Covariances r (k, m) with the rows of the units met, the roots of whose weights they are multiplied by."""
        psi, eta = phi[self.within.of_shape], phi[self.within.of_sd]
        same = self.subject[meeting.rows] == self.new.subject[meeting.new][:, None]
        mine, theirs = np.broadcast_arrays(self.positions[meeting.new][:, None], self.own[meeting.rows])
        c = self.shape.values(psi, self.shape.keys(mine, np.where(same, theirs, mine)))[0]
        log_sd = (self.log_sd[meeting.new] @ eta)[:, None] + self.within.log_sd[meeting.rows] @ eta
        return np.asarray(c * np.exp(log_sd) * same / np.sqrt(self.new.weights[meeting.new])[:, None])


def residual_inverses(model: ResidualModel, parts: Sequence[Batch], phi: Array) -> list[Array]:
    """R^-1 (k, m, m) of each batch's patterns, random effects apart."""
    out = []
    for part in parts:
        at = model.prepare(part.rows)
        at = replace(at, z=tuple(np.zeros_like(z) for z in at.z))
        out.append(np.asarray(np.linalg.inv(model.values(phi, at)[0]), np.float64))
    return out


def _log_sd(model: PatternModel | CrossedModel, both: Residual, new: NewRows, n: int) -> Array:
    """Columns of the log standard deviations of new rows, as `residual_columns` has them of the fit's."""
    variance = both.variance_of()[0][n:]
    columns = [(variance == v).astype(np.float64) for v in range(1, model.n_variances)]
    if new.dispersion is not None:
        first = max(model.n_variances - 1, 0)
        columns += list(((new.dispersion - model.center[first:]) / model.unit_of[first:]).T)
    return np.column_stack(columns) if columns else np.zeros((len(new.subject), 0))
