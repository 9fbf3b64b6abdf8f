"""Arrays of rows that grow at their end, in memory or in a temporary file, and rows made of such arrays.

Files are unlinked as they are made (on Windows deleted as they are closed), so that none is left behind by whatever
ends the process. They are read through memory maps of a piece at a time, which are gone when whoever reads is done.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastlmm_core.core.rows_at_hand import PIECE, Piece
from fastlmm_core.errors import MemoryLimitError

__all__ = ["KeptRows", "Spool"]

Array = NDArray[np.float64]
Codes = NDArray[np.int32]


class Spool:
    """An array (n, ...) that is written piece by piece; whoever has it knows n.

    Parameters
    ----------
    dtype, tail
        Of the array, and its shape behind the rows.
    on_disk : bool
        In a file from the start.

    Notes
    -----
    In memory a piece is an anonymous map of its own, which costs what is written to it and is given back whole. Rows
    once written below a reader's n are never written again.
    """

    def __init__(self, dtype: DTypeLike, tail: tuple[int, ...] = (), on_disk: bool = False) -> None:
        self.dtype, self.tail = np.dtype(dtype), tail
        self.row_bytes = int(self.dtype.itemsize * np.prod(tail, dtype=np.int64))
        self._pieces: list[Any] = []
        self._file: Any = None
        self._owner = os.getpid()
        if on_disk:
            self._file = temporary()

    @property
    def on_disk(self) -> bool:
        """Whether it is in a file."""
        return self._file is not None

    def write(self, at: int, values: NDArray[Any]) -> None:
        """Put rows (k, ...) at ``at``, where rows end by then.

        Raises
        ------
        MemoryLimitError
            The disk is full; what has been written before is untouched.
        """
        if self._file is not None:
            self._to_file(at, values)
            return
        done = 0
        while done < len(values):
            piece, start = divmod(at + done, PIECE)
            if piece == len(self._pieces):
                self._pieces.append(anonymous(PIECE * self.row_bytes))
            count = min(PIECE - start, len(values) - done)
            self._view(piece)[start : start + count] = values[done : done + count]
            done += count

    def _view(self, piece: int) -> NDArray[Any]:
        return np.frombuffer(self._pieces[piece], self.dtype).reshape(PIECE, *self.tail)

    def _to_file(self, at: int, values: NDArray[Any]) -> None:
        if self._owner != os.getpid():  # a fork's parent has the same file: the child goes on in one of its own
            theirs, self._file, self._owner = self._file, temporary(), os.getpid()
            for start in range(0, at, PIECE):
                self._to_file(start, mapped(theirs, self, start, min(start + PIECE, at)))
        try:
            put(self._file, at * self.row_bytes, np.ascontiguousarray(values, self.dtype).data.cast("B"))
        except OSError as error:
            size = (at + len(values)) * self.row_bytes / 2**30
            raise MemoryLimitError(
                f"rows do not fit into the memory given, and {size:.3g} GiB of them could not be written to a "
                f"temporary file in {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a folder of a disk with "
                "more room, or let stream(..., memory=...) take more memory"
            ) from None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows of one piece, not to be written to."""
        if self._file is not None:
            return mapped(self._file, self, start, stop)
        piece, first = divmod(start, PIECE)
        out = self._view(piece)[first : first + stop - start]
        out.flags.writeable = False
        return out

    def whole(self, n: int) -> np.memmap[Any, Any]:
        """All of n rows of a file as one array, through a map of its own."""
        return np.memmap(self._file, self.dtype, "r", shape=(n, *self.tail))

    def spill(self, n: int) -> Spool:
        """The first n rows in a file; here they stay as they are."""
        out = Spool(self.dtype, self.tail, on_disk=True)
        for start in range(0, n, PIECE):
            out.write(start, self.read(start, min(start + PIECE, n)))
        return out


def temporary() -> Any:
    """A file without a name, unbuffered."""
    return tempfile.TemporaryFile(buffering=0)


def put(file: Any, at: int, data: memoryview) -> None:
    """Write bytes at ``at``, wherever a forked child's reading has moved the place that it shares with the file here.

    Windows has neither such writes nor forks.
    """
    while data:
        if hasattr(os, "pwrite"):
            done = os.pwrite(file.fileno(), data, at)
        else:
            file.seek(at)
            done = file.write(data)
        at, data = at + done, data[done:]


def anonymous(size: int) -> mmap.mmap:
    """Memory that belongs to nothing else; a forked child has a copy of it."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def mapped(file: Any, of: Spool, start: int, stop: int) -> NDArray[Any]:
    """Rows of a file that begin where a piece does."""
    held = mmap.mmap(file.fileno(), (stop - start) * of.row_bytes, access=mmap.ACCESS_READ, offset=start * of.row_bytes)
    return np.frombuffer(held, of.dtype).reshape(stop - start, *of.tail)


class KeptRows:
    """Codes, columns and weights of rows, a spool each.

    Attributes
    ----------
    n : int
        Rows.
    on_disk : bool
        They are in files, or will be.
    """

    def __init__(self) -> None:
        self.n, self._factors, self.on_disk = 0, 0, False
        self._spools: list[Spool | None] = []  # codes and columns of each factor, weights; None where there are none

    def __len__(self) -> int:
        return self.n

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return sum(spool.row_bytes for spool in self._spools if spool is not None)

    @property
    def varying(self) -> tuple[bool, ...]:
        """Whether a factor has columns beside ones."""
        return tuple(spool is not None for spool in self._spools[self._factors : 2 * self._factors])

    @property
    def weighted(self) -> bool:
        """Whether there are weights."""
        return bool(self._spools) and self._spools[-1] is not None

    def add(self, codes: Sequence[Codes], columns: Sequence[Array | None], weights: Array | None) -> None:
        """Add rows: codes (k,), columns (k, l) or None for ones, weights (k,) or None; all of them or none."""
        arrays = [*codes, *columns, weights]
        if not self._spools:
            self._factors = len(codes)
            self._spools = [None if a is None else Spool(a.dtype, a.shape[1:], self.on_disk) for a in arrays]
        for spool, values in zip(self._spools, arrays, strict=True):
            if spool is not None and values is not None:
                spool.write(self.n, values)
        self.n += len(codes[0])

    def pieces(self) -> Iterator[Piece]:
        """`PIECE` rows after another, in the order in which they came."""
        for start in range(0, self.n, PIECE):
            stop = min(start + PIECE, self.n)
            parts = [None if spool is None else spool.read(start, stop) for spool in self._spools]
            codes = [part for part in parts[: self._factors] if part is not None]
            yield codes, parts[self._factors : 2 * self._factors], parts[-1]

    def snapshot(self) -> KeptRows:
        """The rows so far, shared; later ones are not in it."""
        out = KeptRows()
        out.n, out._factors, out.on_disk, out._spools = self.n, self._factors, self.on_disk, list(self._spools)
        return out

    def spill(self) -> None:
        """Go into files."""
        self._spools = [None if spool is None else spool.spill(self.n) for spool in self._spools]
        self.on_disk = True

    def renumber(self, orders: Sequence[Codes]) -> None:
        """Give each level the code that its factor's ``orders`` (q,) has for it; snapshots keep the old ones."""
        spools = list(self._spools)
        for f, order in enumerate(orders[: self._factors]):
            old = spools[f]
            assert old is not None
            if not np.array_equal(order, np.arange(len(order))):
                spools[f] = new = Spool(old.dtype, on_disk=old.on_disk)
                for start in range(0, self.n, PIECE):
                    new.write(start, order[old.read(start, min(start + PIECE, self.n))])
        self._spools = spools

    def __getstate__(self) -> dict[str, list[Piece]]:
        return {"pieces": list(self.pieces())}

    def __setstate__(self, state: dict[str, list[Piece]]) -> None:
        self.__init__()  # type: ignore[misc]
        for piece in state["pieces"]:
            self.add(*piece)
