"""Intrinsic conditional autoregressions: the precision of a graph of neighbours.

Q = D - W,   W_ij the weight of neighbours i and j, D its row sums;   b'Q b = sum over pairs of w_ij (b_i - b_j)^2

Besag (1974); Besag, York and Mollie (1991).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core.core.structures.relationship import Relationship, intrinsic

__all__ = ["from_neighbours"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def from_neighbours(
    names: Sequence[Any], a: Index, b: Index, weights: Array, scaled: bool = False, labelled: bool = True
) -> Relationship:
    """The intrinsic relationship of a graph.

    Parameters
    ----------
    names : sequence (q,)
    a, b : (m,) int64
        Places of the two ends of each edge, a != b, each edge once.
    weights : (m,)
        Positive.
    scaled : bool
        Divide the covariance, component by component, by the geometric mean of its diagonal (Sorbye and Rue 2014;
        Freni-Sterrantino, Ventrucci and Rue 2018).
    labelled : bool
        Whether the names are the levels', not their numbers.
    """
    labels = np.empty(len(names), object)
    labels[:] = list(names)
    out = intrinsic(labels, _laplacian(len(labels), a, b, weights), labelled)
    if not scaled:
        return out
    assert out.components is not None
    alone = np.bincount(out.components)[out.components] == 1
    logs = np.log(np.where(alone, 1.0, out.variances))
    scale = np.exp(np.bincount(out.components, logs) / np.bincount(out.components))
    return intrinsic(labels, _laplacian(len(labels), a, b, weights * scale[out.components[a]]), labelled)


def _laplacian(q: int, a: Index, b: Index, weights: Array) -> sp.csc_array:
    W = sp.coo_array((np.append(weights, weights), (np.append(a, b), np.append(b, a))), shape=(q, q)).tocsc()
    return sp.csc_array(sp.diags_array(np.asarray(W.sum(axis=1)).ravel()) - W)
