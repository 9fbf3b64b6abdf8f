"""Arrays of rows that grow in memory or in files: what was written is read, whatever happens in between."""

import errno
import os
import pickle
from itertools import pairwise

import numpy as np
import pytest

from fastlmm_core.core import rows_at_hand, spool
from fastlmm_core.core.spool import KeptRows, Spool
from fastlmm_core.errors import MemoryLimitError

SMALL = 16_384


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(spool, "PIECE", SMALL)
    monkeypatch.setattr(rows_at_hand, "PIECE", SMALL)


PUT = spool.put


def disk_of(room):
    """`spool.put` on a disk whose files have room for some bytes."""

    def put(file, at, data):
        if at + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        PUT(file, at, data)

    return put


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, 50, n).astype(np.int32) for _ in range(2)]
    return codes, [rng.normal(size=(n, 2)), None], rng.uniform(size=n)


def kept(cuts, spill_at=None):
    out, whole = KeptRows(), rows(cuts[-1])
    for k, (a, b) in enumerate(pairwise(cuts)):
        if k == spill_at:
            out.spill()
        out.add([c[a:b] for c in whole[0]], [whole[1][0][a:b], None], whole[2][a:b])
    return out, whole


def assert_are(found, codes, columns, weights):
    pieces = list(found.pieces())
    assert [len(c[0]) for c, _, _ in pieces[:-1]] == [SMALL] * (len(pieces) - 1)
    for f, values in enumerate(codes):
        np.testing.assert_array_equal(np.concatenate([c[f] for c, _, _ in pieces]), values)
    np.testing.assert_array_equal(np.concatenate([z[0] for _, z, _ in pieces]), columns[0])
    assert all(z[1] is None for _, z, _ in pieces)
    np.testing.assert_array_equal(np.concatenate([w for _, _, w in pieces]), weights)


@pytest.mark.parametrize("spill_at", [None, 0, 1, 3])
def test_rows_are_read_as_they_came(spill_at):
    found, whole = kept([0, 1, 20_000, 20_007, 50_000], spill_at)
    assert found.on_disk == (spill_at is not None)
    assert found.row_bytes == 32
    assert_are(found, *whole)
    assert_are(pickle.loads(pickle.dumps(found)), *whole)
    orders = [np.random.default_rng(1).permutation(50).astype(np.int32), np.arange(50, dtype=np.int32)]
    earlier = found.snapshot()
    found.renumber(orders)
    found.add([c[:9] for c in whole[0]], [whole[1][0][:9], None], whole[2][:9])
    assert_are(earlier, *whole)
    np.testing.assert_array_equal(np.concatenate([c[0] for c, _, _ in found.pieces()])[:50_000], orders[0][whole[0][0]])
    assert len(found) == 50_009


def test_a_full_disk_is_one_error_and_leaves_what_was_there(monkeypatch):
    monkeypatch.setattr(spool, "put", disk_of(100_000))
    found, whole = kept([0, 10_000])
    with pytest.raises(MemoryLimitError, match=r"No space left on device.*TMPDIR.*memory="):
        found.spill()  # two columns of doubles are more
    assert not found.on_disk
    assert_are(found, *whole)
    monkeypatch.setattr(spool, "put", disk_of(200_000))
    found.spill()
    with pytest.raises(MemoryLimitError, match="could not be written"):
        found.add(*rows(9_000))
    assert_are(found, *whole)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_files_have_no_name_and_go_with_their_rows():
    def temporary():
        return [path for fd in os.listdir("/proc/self/fd") if "(deleted)" in (path := linked(fd))]

    def linked(fd):
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return ""

    before = len(temporary())
    found, _ = kept([0, 20_000], 0)
    assert len(temporary()) == before + 4
    del found
    assert len(temporary()) == before


def test_a_file_is_one_array():
    values = np.random.default_rng(0).normal(size=(40_000, 3))
    of_file = Spool(np.float64, (3,), on_disk=True)
    of_file.write(0, values[:33_000])
    of_file.write(33_000, values[33_000:])
    whole = of_file.whole(40_000)
    del of_file
    np.testing.assert_array_equal(whole, values)
    assert not whole.flags.writeable


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="where there are no forks a file's place is its own")
def test_rows_are_written_wherever_the_place_in_the_file_is():
    """A forked child shares that place, and moves it as it reads."""
    of_file = Spool(np.float64, on_disk=True)
    of_file.write(0, np.arange(10.0))
    os.lseek(of_file._file.fileno(), 24, os.SEEK_SET)
    of_file.write(8, np.arange(5.0))
    assert os.lseek(of_file._file.fileno(), 0, os.SEEK_CUR) == 24
    np.testing.assert_array_equal(of_file.whole(13), [*range(8), *range(5)])
