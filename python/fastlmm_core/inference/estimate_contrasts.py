"""Contrasts of `Estimates`: which rows are combined, and what the combinations are called."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.inference.contrast_matrices import ContrastMatrix, contrast_matrix

if TYPE_CHECKING:
    from fastlmm_core.inference.estimates import Estimates

__all__ = ["interaction_contrasts", "plain_contrasts", "show"]

Array = NDArray[np.float64]


def plain_contrasts(
    estimates: Estimates, method: Any, ref: int | str, reverse: bool, names: Sequence[str] | None
) -> Estimates:
    """One set of contrasts in each group."""
    keys = [c for c in estimates.labels if c not in estimates.by]
    told = pd.DataFrame({key: level_names(estimates.labels[key], key) for key in keys}, index=estimates.labels.index)
    text = told.agg(" ".join, axis=1).to_numpy() if keys else np.full(len(estimates), "overall", dtype=object)
    plain = estimates.labels[keys].astype(str).agg(" ".join, axis=1).to_numpy() if keys else text
    blocks, labels, pairwise = [], [], False
    column = "contrast" if "contrast" not in estimates.by else "contrast1"
    for group in estimates.groups():
        at = ref if isinstance(ref, (int, np.integer)) else _position(ref, [text[group], plain[group]])
        found = contrast_matrix(method, list(text[group]), ref=int(at), reverse=reverse, names=names)
        pairwise = found.pairwise
        blocks.append((group, found))
        labels.append(_group_labels(estimates, group, pd.DataFrame({column: list(found.names)}, dtype=object)))
    return _contrasts(estimates, blocks, labels, pairwise)


def interaction_contrasts(estimates: Estimates, methods: list[Any], ref: int | str) -> Estimates:
    """Products of one set of contrasts a factor, the first factor fastest."""
    keys = [c for c in estimates.labels if c not in estimates.by]
    if len(methods) == 1:
        methods = methods * len(keys)
    if len(methods) != len(keys):
        raise ModelError(f"interaction has {len(methods)} methods for the factors {', '.join(keys)}")
    blocks, labels = [], []
    for group in estimates.groups():
        parts = []
        for key, how in zip(keys, methods, strict=True):
            levels = [show(v) for v in dict.fromkeys(estimates.labels[key].iloc[group])]
            at = ref if isinstance(ref, (int, np.integer)) else _position(ref, [np.array(levels, dtype=object)])
            parts.append(contrast_matrix(how, levels, ref=int(at)))
        if len(group) != np.prod([c.coefficients.shape[1] for c in parts]):
            raise DataError("products of contrasts need every combination of the factors' levels")
        big: Array = np.eye(1)
        for part in parts:
            big = np.asarray(np.kron(part.coefficients, big))
        combos = [combo[::-1] for combo in product(*[part.names for part in reversed(parts)])]
        heads = [
            f"{k}_{m.replace('.', '_') if isinstance(m, str) else 'custom'}" for k, m in zip(keys, methods, strict=True)
        ]
        blocks.append((group, ContrastMatrix(big, tuple(" ".join(c) for c in combos))))
        labels.append(_group_labels(estimates, group, pd.DataFrame(combos, columns=heads, dtype=object)))
    return _contrasts(estimates, blocks, labels, False)


def _group_labels(estimates: Estimates, group: NDArray[np.int64], own: pd.DataFrame) -> pd.DataFrame:
    for name in estimates.by:
        own[name] = estimates.labels[name].iloc[np.full(len(own), group[0])].array
    return own


def _contrasts(
    estimates: Estimates,
    blocks: list[tuple[NDArray[np.int64], ContrastMatrix]],
    labels: list[pd.DataFrame],
    pairwise: bool,
) -> Estimates:
    C = np.zeros((sum(len(found.names) for _, found in blocks), len(estimates)))
    at = 0
    for group, found in blocks:
        C[at : at + len(found.names), group] = found.coefficients
        at += len(found.names)
    return type(estimates)(
        estimates.functions.combined(C),
        pd.concat(labels, ignore_index=True),
        estimates.by,
        estimates.method,
        "contrasts",
        estimates.level,
        pairwise=pairwise,
        response=estimates.response,
        total_sd=estimates.total_sd,
        notes=estimates.notes,
    )


def show(value: Any) -> str:
    """A level as text; whole floats without their point."""
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def level_names(values: pd.Series, name: str) -> list[str]:
    """Levels as text, with the factor's name before them where all are numbers."""
    text = [show(v) for v in values]
    return [name + t for t in text] if all(map(_is_number, text)) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _position(level: Any, candidates: Sequence[Any]) -> int:
    """Place of a level among labels."""
    for labels in candidates:
        found = np.flatnonzero(labels == str(level))
        if len(found):
            return int(found[0])
    raise DataError(f"ref {level!r} is none of the levels {', '.join(map(str, candidates[-1]))}")
