"""Fits of many responses as Arrow record batches: a row a response and contrast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow

    from fastlmm_core.core import ManyResponses

__all__ = ["record_batches"]


def record_batches(
    fitted: Iterable[tuple[Sequence[str], ManyResponses]], contrasts: Sequence[str]
) -> pyarrow.RecordBatchReader:
    """A reader whose batches are made of names of responses and their fits, as these come."""
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError("record batches need pyarrow: pip install pyarrow") from None
    number = pa.float64()
    schema = pa.schema(
        {
            "response": pa.string(),
            "contrast": pa.dictionary(pa.int32(), pa.string()),
            **dict.fromkeys(("estimate", "std_error", "df", "t", "p"), number),
            "n": pa.int64(),
            "theta": pa.list_(number),
            "sigma": number,
            "is_singular": pa.bool_(),
            "converged": pa.bool_(),
            "message": pa.string(),
        }
    )

    def batches() -> Iterator[Any]:
        for names, fits in fitted:
            yield pa.record_batch(_columns(pa, names, fits, contrasts), schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _columns(pa: Any, names: Sequence[str], fits: ManyResponses, contrasts: Sequence[str]) -> list[Any]:
    k, c = len(names), len(contrasts)
    each = np.repeat(np.arange(k), c)
    theta = np.ascontiguousarray(fits.theta[each])
    ends = np.arange(k * c + 1, dtype=np.int32) * np.int32(theta.shape[1])
    kinds = pa.DictionaryArray.from_arrays(
        pa.array(np.tile(np.arange(c, dtype=np.int32), k)), pa.array(list(contrasts))
    )
    return [
        pa.array(names, pa.string()).take(pa.array(each)),
        kinds,
        *(pa.array(getattr(fits, name).ravel()) for name in ("estimate", "std_error", "df", "t", "p")),
        pa.array(fits.n[each]),
        pa.ListArray.from_arrays(pa.array(ends), pa.array(theta.ravel())),
        *(pa.array(getattr(fits, name)[each]) for name in ("sigma", "is_singular", "converged")),
        pa.array(fits.message, pa.string()).take(pa.array(each)),
    ]
