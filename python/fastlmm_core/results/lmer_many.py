"""`lmer_many()`: one formula and one design, thousands of responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.many.responses import ManyResponses, fit_responses
from fastlmm_core.errors import DataError, FastLMMError
from fastlmm_core.fitting.fit import core_terms
from fastlmm_core.fitting.spelling import answering, explained
from fastlmm_core.formula import build_design
from fastlmm_core.formula.checks import response_values
from fastlmm_core.formula.evaluate import Context, caller_names
from fastlmm_core.formula.frame import Table, aligned, from_pandas
from fastlmm_core.formula.rowwise import numeric_argument
from fastlmm_core.inference.expand import as_pandas
from fastlmm_core.inference.hypotheses import read_hypotheses
from fastlmm_core.inference.many_batches import record_batches
from fastlmm_core.inference.moderated import moderated_table
from fastlmm_core.inference.reductions import refuse_structures

if TYPE_CHECKING:
    import pyarrow

    from fastlmm_core.core import Control
    from fastlmm_core.formula import Design

__all__ = ["LmerMany", "lmer_many", "lmer_many_batches"]

Array = NDArray[np.float64]


@answering
@dataclass(frozen=True, eq=False, repr=False)
class LmerMany:
    """Fits of one formula to many responses.

    Attributes
    ----------
    design : Design
    fits : ManyResponses
        Arrays, a row a response.
    names : tuple of str
        Of the responses.
    contrasts : tuple of str
        What was tested, by name.
    """

    design: Design
    fits: ManyResponses
    names: tuple[str, ...]
    contrasts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        failed = int(np.count_nonzero(self.fits.message != ""))
        return f"<LmerMany: {self.design.formula}; {len(self)} responses, {failed} with a message>"

    @property
    def params(self) -> pd.DataFrame:
        """Coefficients, a row a response."""
        return pd.DataFrame(self.fits.beta, index=list(self.names), columns=list(self.design.x_names))

    def table(self, contrast: str | int = 0, *, moderated: bool = False) -> pd.DataFrame:
        """Tests of one contrast in every response.

        Parameters
        ----------
        contrast : str or int
            By name or position.
        moderated : bool
            Shrink the variances towards a common one (Smyth 2004): more power where degrees of freedom are few.

        Returns
        -------
        DataFrame
            A row a response: estimate, std_error, df, t, p, p_adjusted (Benjamini and Hochberg 1995), n, is_singular,
            message.
        """
        k = place_of(self.contrasts, contrast)
        f = self.fits
        return moderated_table(
            f.estimate[:, k], f.std_error[:, k], f.df[:, k], f.n, f.is_singular, f.message, list(self.names), moderated
        )


def place_of(contrasts: Sequence[str], asked: str | int) -> int:
    """The place of a contrast, by name or position; DataError where there is none."""
    if isinstance(asked, str) and asked in contrasts:
        return contrasts.index(asked)
    if isinstance(asked, Integral) and not isinstance(asked, bool):
        k = int(asked)
        if -len(contrasts) <= k < len(contrasts):
            return k
    raise DataError(f"there is no contrast {asked!r}: there are {', '.join(contrasts[:20])}")


@explained
def lmer_many(
    formula: str,
    data: Any,
    responses: ArrayLike | Sequence[str] | pd.DataFrame,
    *,
    contrasts: Any = None,
    weights: str | ArrayLike | None = None,
    reml: bool = True,
    control: Control | None = None,
    progress: bool = False,
    env: Mapping[str, Any] | None = None,
) -> LmerMany:
    """Fit one formula to many responses.

    Parameters
    ----------
    formula : str
        As for `lmer`; what stands left of "~" is not looked at: ``"~ x + (1 | g)"`` will do.
    data : table
        The design, a row an observation.
    responses : str, list of str, DataFrame (n, k) or array (k, n)
        Columns of the data, numbers or true and false; a frame with a column a response, whose index is that of the
        data; or an array with a row a response. NaN is a missing value of that response alone.
    contrasts : str, list, mapping or array (c, p), optional
        Hypotheses as for `t_test`, or names to such; every coefficient by default.
    weights : str, (n,) or (k, n), optional
        Inverse residual variances, for all responses or for each (precision weights of counts): a column or an
        expression of columns, or numbers. A Series, or a frame with a column a response, is aligned with the data's
        index; rows whose weight is zero or missing are left out.
    reml, control, env
        As for `lmer`.
    progress : bool
        Show a bar.

    Returns
    -------
    LmerMany

    Raises
    ------
    DataError
        The design has missing values, or shapes do not fit.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from fastlmm_core import lmer_many
    >>> rng = np.random.default_rng(0)
    >>> samples = pd.DataFrame({"person": np.repeat(np.arange(12), 4), "dose": np.tile([0, 1, 0, 1], 12)})
    >>> Y = rng.normal(size=(50, 12))[:, samples.person] + rng.normal(size=(50, 48))
    >>> Y[4] += 2.0 * samples.dose
    >>> found = lmer_many("~ dose + (1 | person)", samples, Y, contrasts="dose")
    >>> found.table()["p"].idxmin()
    '4'
    """
    env = caller_names(2) if env is None else env
    frame, index = as_pandas(data), index_of(data)
    Y, names = responses_of(responses, frame, index)
    weights = given_weights(_by_name(weights, frame, env), index, len(frame))
    design = design_of(formula, frame, env)
    labels, rows = contrast_rows(contrasts, list(design.x_names))
    from fastlmm_core.inference.bootstrap import _bar

    with _bar(len(Y), progress) as shown:
        fits = _fitted(design, Y, weights, rows, reml, control, shown.update)
    return LmerMany(design, fits, tuple(names), tuple(labels))


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


def _fitted(
    design: Design,
    Y: Array,
    weights: ArrayLike | None,
    rows: Array,
    reml: bool,
    control: Control | None,
    progress: Callable[[int], None] | None,
) -> ManyResponses:
    return fit_responses(
        Y,
        design.X,
        core_terms(design),
        weights=weights,
        offset=design.offset,
        contrasts=rows,
        reml=reml,
        control=control,
        progress=progress,
    )


def lmer_many_batches(
    formula: str,
    data: Any,
    blocks: Iterable[Any],
    *,
    contrasts: Any = None,
    weights: str | ArrayLike | None = None,
    reml: bool = True,
    control: Control | None = None,
    env: Mapping[str, Any] | None = None,
) -> pyarrow.RecordBatchReader:
    """Fit one formula to more responses than memory holds: blocks of responses in, Arrow record batches out.

    Parameters
    ----------
    formula, data, contrasts, reml, control, env
        As for `lmer_many`.
    blocks : iterable
        Of responses as `lmer_many` takes them, some hundred or thousand at a time: arrays (k, n), which are numbered
        through, or frames (n, k). A pair (responses, weights) has weights (k, n) of its own.
    weights : (n,), optional
        For all responses of blocks that have none.

    Returns
    -------
    pyarrow.RecordBatchReader
        A batch a block, made when it is read, so that one block is in memory at a time. A row a response and contrast:
        response, contrast, estimate, std_error, df, t, p, n, theta (a list), sigma, is_singular, converged, message.
        `pyarrow.dataset.write_dataset`, DuckDB and polars read it as it is.

    Raises
    ------
    DataError
        As `lmer_many`; for a block when it is read.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from fastlmm_core import lmer_many_batches
    >>> rng = np.random.default_rng(0)
    >>> samples = pd.DataFrame({"person": np.repeat(np.arange(12), 4), "dose": np.tile([0, 1, 0, 1], 12)})
    >>> voxels = (rng.normal(size=(200, 48)) for _ in range(5))
    >>> reader = lmer_many_batches("~ dose + (1 | person)", samples, voxels, contrasts="dose")
    >>> sum(batch.num_rows for batch in reader)
    1000
    """
    env = caller_names(2) if env is None else env
    frame, index = as_pandas(data), index_of(data)
    design = design_of(formula, frame, env)
    weights = given_weights(_by_name(weights, frame, env), index, len(frame))
    labels, rows = contrast_rows(contrasts, list(design.x_names))
    if weights is not None and np.shape(weights) != (len(frame),):
        raise DataError(
            f"weights has shape {np.shape(weights)}, but the blocks share weights of shape ({len(frame)},): weights of "
            "their own come with them, as pairs (responses, weights)"
        )
    if isinstance(blocks, (str, Mapping)) or not isinstance(blocks, Iterable):
        raise DataError(f"blocks must be an iterable of blocks of responses, not {type(blocks).__name__}")

    def fitted() -> Iterator[tuple[list[str], ManyResponses]]:
        done = 0
        for block in blocks:
            own = isinstance(block, tuple) and len(block) == 2 and not isinstance(block[0], str)
            responses, given = block if own else (block, weights)
            Y, names = responses_of(responses, frame, index)
            given = given_weights(given, index, len(frame))
            if not isinstance(responses, (pd.DataFrame, list, tuple)):
                names = [str(done + i) for i in range(len(Y))]
            done += len(Y)
            yield names, _fitted(design, Y, given, rows, reml, control, None)

    return record_batches(fitted(), labels)


def index_of(data: Any) -> pd.Index | None:
    """The labels of the data's rows, where they have any."""
    return data.index if isinstance(data, pd.DataFrame) else None


def _by_name(weights: Any, frame: pd.DataFrame, env: Mapping[str, Any]) -> Any:
    """Weights, those that a text names or computes as numbers."""
    return numeric_argument(weights, "weights", Table(frame), Context(env)) if isinstance(weights, str) else weights


def given_weights(weights: Any, index: pd.Index | None, n: int, what: str = "weights") -> Any:
    """Weights (n,) or (k, n), those of pandas in the order of the data's rows."""
    if isinstance(weights, pd.Series):
        return aligned(weights, index, what).to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(weights, pd.DataFrame) and len(weights) == n:
        return aligned(weights, index, what).to_numpy(dtype=np.float64, na_value=np.nan).T
    return weights


def responses_of(given: Any, frame: pd.DataFrame, index: pd.Index | None) -> tuple[Array, list[str]]:
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
