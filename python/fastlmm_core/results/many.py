"""What `lmer_many` and `glmer_many` share: how responses and contrasts are read, and the figures of each response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FastLMMError
from fastlmm_core.formula import build_design
from fastlmm_core.formula.checks import response_values
from fastlmm_core.formula.frame import aligned, from_pandas
from fastlmm_core.inference.hypotheses import read_hypotheses
from fastlmm_core.inference.reductions import refuse_structures

if TYPE_CHECKING:
    from fastlmm_core.formula import Design

__all__ = ["OfMany", "contrast_rows", "design_of", "given_weights", "index_of", "responses_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class OfMany:
    """Fits of one design to many responses; base of `LmerMany` and `GlmerMany`, which have its attributes in words."""

    design: Design
    fits: Any
    names: tuple[str, ...]
    contrasts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        failed = int(np.count_nonzero(self.fits.message != ""))
        return f"<{type(self).__name__}: {self._what}; {len(self)} responses, {failed} with a message>"

    @property
    def _what(self) -> str:
        return str(self.design.formula)

    @property
    def params(self) -> pd.DataFrame:
        """Coefficients, a row a response."""
        return self._rows(self.fits.beta, self.design.x_names)

    def _rows(self, values: Any, columns: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame(values, index=list(self.names), columns=list(columns))

    def _place(self, contrast: str | int) -> int:
        """The place of a contrast, by name or position; DataError where there is none."""
        if isinstance(contrast, str) and contrast in self.contrasts:
            return self.contrasts.index(contrast)
        if isinstance(contrast, Integral) and not isinstance(contrast, bool):
            k = int(contrast)
            if -len(self.contrasts) <= k < len(self.contrasts):
                return k
        raise DataError(f"there is no contrast {contrast!r}: there are {', '.join(self.contrasts[:20])}")


def design_of(formula: str, frame: pd.DataFrame, env: Mapping[str, Any], *, observation_level: bool = False) -> Design:
    """The design of the right side, whatever the response."""
    name = "response"
    while name in frame:
        name += "_"
    noise = np.random.default_rng(0).standard_normal(len(frame))
    right = formula.split("~", 1)[-1]
    design = build_design(
        f"{name} ~ {right}",
        frame.assign(**{name: noise}),
        na_action="raise",
        env=env,
        observation_level=observation_level,
    )
    refuse_structures(design, "many responses at once")
    return design


def index_of(data: Any) -> pd.Index | None:
    """The labels of the data's rows, where they have any."""
    return data.index if isinstance(data, pd.DataFrame) else None


def given_weights(weights: Any, index: pd.Index | None, n: int, what: str = "weights") -> Any:
    """Weights (n,) or (k, n), those of pandas in the order of the data's rows."""
    if isinstance(weights, pd.Series):
        return aligned(weights, index, what).to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(weights, pd.DataFrame) and len(weights) == n:
        return aligned(weights, index, what).to_numpy(dtype=np.float64, na_value=np.nan).T
    return weights


def responses_of(given: Any, frame: pd.DataFrame, index: pd.Index | None) -> tuple[Array, list[str]]:
    """Responses (k, n) and their names, of columns of the data, a frame or an array; DataError where it is neither."""
    try:
        Y, names = _numbers(given, frame, index)
    except (TypeError, ValueError) as error:
        if isinstance(error, FastLMMError):
            raise
        raise DataError(f"the responses are not numeric: {error}") from None
    if Y.shape[1] != len(frame):
        raise DataError(f"the responses have {Y.shape[1]} values each, but the data have {len(frame)} rows")
    return Y, names


def _numbers(given: Any, frame: pd.DataFrame, index: pd.Index | None) -> tuple[Array, list[str]]:
    """Responses (k, n) and their names."""
    given = [given] if isinstance(given, str) else given
    if isinstance(given, pd.DataFrame):
        values = aligned(given, index, "responses") if len(given) == len(frame) else given  # refused below
        Y, names = _columns(values), [str(c) for c in given]
    elif isinstance(given, (list, tuple)) and given and all(isinstance(g, str) for g in given):
        absent = [g for g in given if g not in frame]
        if absent:
            raise DataError(f"there is no column {absent[0]!r} among the data")
        Y, names = _columns(frame[list(given)]), list(given)
    else:
        Y = (
            np.ma.filled(given.astype(np.float64), np.nan)
            if isinstance(given, np.ma.MaskedArray)
            else np.asarray(given)
        )
        if np.iscomplexobj(Y):
            raise DataError("the responses are complex numbers")
        Y = Y.astype(np.float64, copy=False)
        if Y.ndim != 2:
            raise DataError(f"the responses have shape {Y.shape}: an array with a row a response is needed")
        names = [str(i) for i in range(len(Y))]
    return Y, names


def _columns(frame: pd.DataFrame) -> Array:
    """The columns of a frame as rows of numbers (k, n); DataError for one of text, as `lmer` has it of a response."""
    if all(isinstance(dtype, np.dtype) and dtype.kind in "biuf" for dtype in frame.dtypes):
        return frame.to_numpy(dtype=np.float64).T
    columns = []
    for k, name in enumerate(frame):
        variable = from_pandas(frame.iloc[:, k], str(name))
        missing = variable.missing()
        kept = np.arange(len(frame)) if missing is None else np.flatnonzero(~missing)
        row = np.full(len(frame), np.nan)
        row[kept] = response_values(variable, str(name), kept)
        columns.append(row)
    return np.array(columns)


def contrast_rows(given: Any, names: list[str]) -> tuple[list[str], Array]:
    """Labels (c,) of the contrasts and their rows (c, p): every coefficient where none were given."""
    if given is None:
        return names, np.eye(len(names))
    if isinstance(given, Mapping):
        parts = {str(k): read_hypotheses(v, names) for k, v in given.items()}
        for label, part in parts.items():
            if len(part.rows) != 1:
                raise DataError(f"the contrast {label!r} has {len(part.rows)} rows: give each a name of its own")
        return list(parts), np.vstack([part.rows for part in parts.values()])
    found = read_hypotheses(given, names)
    if np.any(found.values):
        raise DataError("contrasts are tested against 0: write them without another value")
    return [label.removesuffix(" = 0") for label in found.labels], found.rows
