"""`lmer_many()`: one formula and one design, thousands of responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core import ManyResponses, fit_responses
from fastlmm_core.errors import DataError
from fastlmm_core.fitting.fit import core_terms
from fastlmm_core.fitting.spelling import answering, explained
from fastlmm_core.formula.evaluate import Context, caller_names
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.rowwise import numeric_argument
from fastlmm_core.inference.expand import as_pandas
from fastlmm_core.inference.many_batches import record_batches
from fastlmm_core.inference.moderated import moderated_table
from fastlmm_core.inference.progress import counted
from fastlmm_core.results.many import OfMany, contrast_rows, design_of, given_weights, index_of, responses_of

if TYPE_CHECKING:
    import pyarrow

    from fastlmm_core.core import Control
    from fastlmm_core.formula import Design

__all__ = ["LmerMany", "lmer_many", "lmer_many_batches"]

Array = NDArray[np.float64]


@answering
@dataclass(frozen=True, eq=False, repr=False)
class LmerMany(OfMany):
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

    fits: ManyResponses

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
        k = self._place(contrast)
        f = self.fits
        return moderated_table(
            f.estimate[:, k], f.std_error[:, k], f.df[:, k], f.n, f.is_singular, f.message, list(self.names), moderated
        )


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
    env = caller_names(3) if env is None else env
    frame, index = as_pandas(data), index_of(data)
    Y, names = responses_of(responses, frame, index)
    weights = given_weights(_by_name(weights, frame, env), index, len(frame))
    design = design_of(formula, frame, env)
    labels, rows = contrast_rows(contrasts, list(design.x_names))
    with counted(len(Y), progress, "fits", "response") as shown:
        fits = _fitted(design, Y, weights, rows, reml, control, shown.update)
    return LmerMany(design, fits, tuple(names), tuple(labels))


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


def _by_name(weights: Any, frame: pd.DataFrame, env: Mapping[str, Any]) -> Any:
    """Weights, those that a text names or computes as numbers."""
    return numeric_argument(weights, "weights", Table(frame), Context(env)) if isinstance(weights, str) else weights
