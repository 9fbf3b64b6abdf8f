"""Sources of rows that do not have to fit in memory: Parquet files, datasets, iterables of batches, queries.

A source gives its rows as pyarrow record batches, part by part; a part is a file where there are files. pyarrow is an
optional package, imported here when a source is opened.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

from fastlmm_core.errors import DataError, DependencyError

__all__ = ["BATCH_SIZE", "Stream", "is_stream", "stream"]

BATCH_SIZE = 500_000
"""Rows read at a time."""

Part = Callable[[Sequence[str]], Iterator[Any]]


class Stream:
    """Rows to be read in batches; made by `stream`.

    Parameters
    ----------
    source : object
        See `stream`.
    batch_size : int
    progress : callable or bool, optional
    checkpoint : path, optional
    memory : number or str, optional

    Attributes
    ----------
    names : tuple of str
        Columns.
    repeatable : bool
        Whether the rows can be read more than once.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int], object] | bool | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        memory: float | str | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"batch_size must be a whole number of rows from 1, not {batch_size!r}")
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise DataError(f"progress must be True or a function of the rows read, not {progress!r}")
        self.batch_size, self.progress, self.checkpoint = batch_size, progress, checkpoint
        self.memory = None if memory is None else bytes_of(memory)
        self.repeatable = True
        self.schema: Any = None
        self._parts: list[tuple[str, Part]] = []
        self._head: Any = None  # of batches that may come only once
        self._has_files = True  # or what stands for them: parts with names
        pa = _pyarrow()
        source = _frame_of(source)
        if isinstance(source, (str, os.PathLike)) or _all_paths(source):
            self._open_files(source)
        elif hasattr(source, "get_fragments"):
            self._open_dataset(source)
        elif isinstance(source, pa.Table):
            self.schema = source.schema
            self._parts = [("the table", lambda names: iter(source.select(names).to_batches(batch_size)))]
        elif callable(source):
            self._open_iterable(source)
        elif isinstance(source, Iterable):
            once = iter(source)
            self.repeatable = once is not source  # a list, unlike an iterator, begins anew
            self._open_iterable((lambda: iter(source)) if self.repeatable else lambda: once)
        else:
            raise DataError(
                f"cannot read batches of rows from {type(source).__name__}: pass a path of Parquet files, a pyarrow "
                "dataset or table, an iterable of pyarrow batches, a DuckDB relation, or a polars LazyFrame"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Columns."""
        return tuple(self.schema.names)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in order: files, where there are any."""
        return [name for name, _ in self._parts]

    def peek(self, names: Sequence[str]) -> Any:
        """The first batch, without taking it."""
        self._check("the first part", self.schema, names)
        if self._head is not None:
            return self._head.select(list(names))
        for _, batch in self.batches(names):
            return batch
        raise DataError("the source of batches has no rows")

    def batches(self, names: Sequence[str], skip: Iterable[str] = ()) -> Iterator[tuple[str, Any]]:
        """Part and record batch of some columns, of all parts but those to be skipped.

        Raises
        ------
        DataError
            A part lacks a column, or has another type of values in it than the first.
        """
        done = set(skip)
        for name, part in self._parts:
            if name not in done:
                for k, batch in enumerate(part(list(names))):
                    if batch.num_rows:
                        yield name if self._has_files else f"batch {k}", batch

    def _open_files(self, source: Any) -> None:
        import pyarrow.dataset as ds

        for path in _paths(source):
            try:
                plain = ds.dataset(path, format="parquet")
                texts = [field.name for field in plain.schema if _kind(field.type) == "text"]
                one = ds.dataset(path, format=ds.ParquetFileFormat(dictionary_columns=texts))
            except (OSError, ValueError) as error:
                raise DataError(f"cannot read {path} as a Parquet file: {error}") from None
            self._parts.append((path, self._file_part(path, one)))
            self.schema = one.schema if self.schema is None else self.schema

    def _open_dataset(self, dataset: Any) -> None:
        self.schema = dataset.schema
        for k, fragment in enumerate(dataset.get_fragments()):
            name = str(getattr(fragment, "path", "") or f"part {k}")
            self._parts.append((name, self._fragment_part(fragment, dataset.schema)))

    def _file_part(self, path: str, one: Any) -> Part:
        def read(names: Sequence[str]) -> Iterator[Any]:
            self._check(path, one.schema, names)
            return iter(one.to_batches(columns=list(names), batch_size=self.batch_size, **_LITTLE_AHEAD))

        return read

    def _fragment_part(self, fragment: Any, schema: Any) -> Part:
        def read(names: Sequence[str]) -> Iterator[Any]:
            return iter(
                fragment.to_batches(schema=schema, columns=list(names), batch_size=self.batch_size, **_LITTLE_AHEAD)
            )

        return read

    def _open_iterable(self, make: Callable[[], Any]) -> None:
        pa = _pyarrow()
        first: list[Any] = []
        made = make()
        if not isinstance(made, Iterable):
            raise DataError(f"the function gave {type(made).__name__}, not batches")
        batches = _rebatched(iter(made), self.batch_size, pa)
        head = next(batches, None)
        if head is None:
            raise DataError("the source of batches has no rows")
        self.schema, self._head, self._has_files = head.schema, head.slice(0, 1 << 14), False
        first.append((head, batches))

        def read(names: Sequence[str]) -> Iterator[Any]:
            if first:
                mine, rest = first.pop()
            elif not self.repeatable:
                raise DataError("the batches have been read, and an iterator gives them once")
            else:
                rest = _rebatched(iter(make()), self.batch_size, pa)
                mine = next(rest, None)
            k = 0
            while mine is not None:
                self._check(f"batch {k}", mine.schema, names)
                yield mine.select(list(names))
                mine, k = next(rest, None), k + 1

        self._parts = [("the batches", read)]

    def _check(self, where: str, schema: Any, names: Sequence[str]) -> None:
        """DataError where a part's columns are not those of the first."""
        for name in names:
            if name not in schema.names:
                raise DataError(f"{where} has no column {name!r}, which the first part has")
            if (times := schema.names.count(name)) > 1:
                raise DataError(f"{where} has {times} columns that are called {name!r}")
            mine, first = _kind(schema.field(name).type), _kind(self.schema.field(name).type)
            if mine != first and "nothing" not in (mine, first):
                raise DataError(f"column {name!r} holds {mine} in {where}, but {first} in the first part")


_LITTLE_AHEAD = {"batch_readahead": 2, "fragment_readahead": 1, "use_threads": False}


def stream(
    source: Any,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] | bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    memory: float | str | None = None,
) -> Stream:
    """Rows for `lmer` to read in batches, none of which is kept.

    Parameters
    ----------
    source : object
        A path of a Parquet file, of a folder of them, or with a wildcard; a list of paths; a pyarrow Dataset or Table;
        an iterable of pyarrow RecordBatches or Tables, or a function that returns one; a DuckDB relation; a polars
        LazyFrame. `lmer` takes all but Tables, relations and LazyFrames for streams without this call.
    batch_size : int
        Rows read at a time.
    progress : callable or bool, optional
        Called with the rows read so far after each batch; True shows a bar on standard error.
    checkpoint : path, optional
        A folder where what has been added up is put file by file, so that the same call goes on after the last
        finished one when the process was killed. Its files are pickles: use one that only you write to.
    memory : number or str, optional
        Bytes that the codes of the rows of several factors may take, such as 2e9 or "2 GB", together with their copy in
        the order that the iterative engine takes: each may take half of it, and goes into temporary files beyond, which
        no other program sees and the end of the process removes. They are in the folder that the environment variable
        TMPDIR names. Half of the memory that is free when it is left out. The answer has the same bits either way.

    Returns
    -------
    Stream

    Raises
    ------
    DataError
        It is no source of batches, or a file is none of Parquet's.
    DependencyError
        pyarrow is not installed.
    """
    if isinstance(source, Stream):
        raise DataError("this is a stream already")
    if checkpoint is not None:
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise DataError(f"checkpoint must be the path of a folder, not {checkpoint!r}")
        if os.path.isfile(checkpoint):
            raise DataError(f"checkpoint must be a folder, but {os.fspath(checkpoint)} is a file")
    return Stream(source, batch_size, progress, checkpoint, memory)


def bytes_of(memory: Any) -> int:
    """Bytes of a number, or of a text such as "200 MB", "1.5 GiB".

    Raises
    ------
    DataError
        It is neither, or not positive.
    """
    size = memory
    if isinstance(memory, str) and (found := _SIZE.fullmatch(memory.strip())):
        prefix, binary = found[2].upper(), bool(found[3])
        size = float(found[1]) * (1024.0 if binary else 1000.0) ** " KMGT".index(prefix or " ")
    if isinstance(size, bool) or not isinstance(size, Real) or not 1 <= float(size) < float("inf"):
        raise DataError(f'memory must be a positive number of bytes, or a text such as "2 GB", not {memory!r}')
    return int(float(size))


_SIZE = re.compile(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def is_stream(data: Any) -> bool:
    """Whether `lmer` reads such data in batches without being told: what is no table in memory."""
    if isinstance(data, (Stream, str, os.PathLike)) or _all_paths(data):
        return True
    if hasattr(data, "get_fragments") and hasattr(data, "schema"):
        return True
    if type(data).__name__ == "RecordBatchReader" or isinstance(data, Iterator):
        return True
    return (
        isinstance(data, (list, tuple)) and bool(data) and hasattr(data[0], "num_rows") and hasattr(data[0], "schema")
    )


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DependencyError("rows in batches need pyarrow: pip install 'fastlmm-core[stream]'") from None
    return pyarrow


def _frame_of(source: Any) -> Any:
    """A query of DuckDB or polars as a function that runs it, batch by batch; anything else as it is."""
    module = type(source).__module__.partition(".")[0]
    if module in ("duckdb", "_duckdb"):
        for reader in ("to_arrow_reader", "fetch_record_batch", "fetch_arrow_reader"):  # the newest name first
            if read := getattr(source, reader, None):
                return lambda: read(BATCH_SIZE)
    if module == "polars" and hasattr(source, "collect_schema") and hasattr(source, "lazy"):
        if hasattr(source, "collect_batches"):
            return lambda: (frame.to_arrow() for frame in source.collect_batches(maintain_order=False))
        return lambda: iter([source.lazy().collect().to_arrow()])
    return source


def _rebatched(tables: Iterator[Any], size: int, pa: Any) -> Iterator[Any]:
    """Record batches of at most some rows from batches or tables of any size."""
    for k, table in enumerate(tables):
        if isinstance(table, pa.RecordBatch):
            for start in range(0, table.num_rows, size):
                yield table.slice(start, size)
        elif isinstance(table, pa.Table):
            yield from table.to_batches(size)
        else:
            raise DataError(f"batch {k} is a {type(table).__name__}, not a pyarrow RecordBatch or Table")


def _all_paths(source: Any) -> bool:
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(p, (str, os.PathLike)) for p in source)


def _paths(source: Any) -> list[str]:
    """The files of a path, a folder, a wildcard or a list of these, sorted within each."""
    out: list[str] = []
    for one in source if isinstance(source, (list, tuple)) else [source]:
        text = os.fspath(one)
        if os.path.isdir(text):
            found = sorted(glob.glob(os.path.join(glob.escape(text), "**", "*.parquet"), recursive=True))
        elif glob.has_magic(text) and not os.path.exists(text):
            found = sorted(path for path in glob.glob(text, recursive=True) if os.path.isfile(path))
        else:
            found = [text] if os.path.exists(text) else []
        if not found:
            what = "no Parquet file" if os.path.isdir(text) else "no such file"
            raise DataError(f"there is {what}: {text}" if what == "no such file" else f"{text} has {what}")
        out += found
    return out


def _kind(arrow: Any) -> str:
    """The kind of a column's values, in words."""
    import pyarrow as pa

    if pa.types.is_dictionary(arrow):
        return _kind(arrow.value_type)
    if pa.types.is_null(arrow):
        return "nothing"
    if pa.types.is_boolean(arrow):
        return "true and false"
    if pa.types.is_integer(arrow) or pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return "numbers"
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return "text"
    return str(arrow)
