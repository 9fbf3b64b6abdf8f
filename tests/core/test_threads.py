"""The bound on BLAS threads that evaluations are run under."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

import problems
from fastlmm_core.core import fit
from fastlmm_core.core.threads import BLOCKS, blas_libraries, one_blas_thread
from fastlmm_core.errors import NumericalError


def counts():
    return [library.num_threads for library in blas_libraries()]


def test_there_is_a_blas_to_bound():
    assert blas_libraries()


def test_the_bound_ends_with_its_block(two_blas_threads):
    with one_blas_thread():
        assert set(counts()) == {1}
    assert counts() == two_blas_threads


def test_blocks_inside_each_other(two_blas_threads):
    with one_blas_thread():
        with one_blas_thread():
            assert set(counts()) == {1}
        assert set(counts()) == {1}
    assert counts() == two_blas_threads


def test_a_thread_keeps_its_bound_when_another_leaves(two_blas_threads):
    """The first to enter leaves first: BLAS stays bounded until the other has left too."""
    inside, leave = Event(), Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with one_blas_thread():
            done = pool.submit(other)
            assert inside.wait(60)
        assert set(counts()) == {1}
        leave.set()
        done.result()
    assert counts() == two_blas_threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads, which is the point
def test_a_child_inherits_no_other_threads_bound(two_blas_threads):
    """Forked while another thread is inside a block and holds the lock: the child has neither."""
    inside, leave = Event(), Event()

    def other():
        with one_blas_thread(), BLOCKS.lock:
            inside.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        assert inside.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            good = counts() == two_blas_threads
            with one_blas_thread():
                good = good and set(counts()) == {1}
            os._exit(0 if good and counts() == two_blas_threads else 1)
        status = os.waitpid(child, 0)[1]
        leave.set()
        done.result()
    assert status == 0
    assert counts() == two_blas_threads


def test_leaving_in_another_order(two_blas_threads):
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(counts()) == {1}
    second.__exit__(None, None, None)
    assert counts() == two_blas_threads


def test_an_error_ends_the_block(two_blas_threads):
    with pytest.raises(RuntimeError), one_blas_thread():
        raise RuntimeError
    assert counts() == two_blas_threads


@pytest.mark.parametrize("threads", [1, 2])
def test_an_evaluation_leaves_the_bound_as_it_was(two_blas_threads, threads):
    objective = problems.build("crossed").objective(threads=threads)
    objective.derivatives(objective.start)
    assert counts() == two_blas_threads
    with pytest.raises(NumericalError):
        objective(1e300 * objective.start)
    assert counts() == two_blas_threads


def test_a_callback_sees_the_bound_and_may_evaluate(two_blas_threads):
    """Fits inside a fit's report: the outer bound applies again after each."""
    problem = problems.build("slope")
    inner = problems.build("crossed")
    seen = []

    def report(*row):
        inner.fit()
        seen.append(counts())

    fit(problem.y, problem.X, problem.core_terms(), on_evaluation=report)
    assert seen
    assert all(set(found) == {1} for found in seen)
    assert counts() == two_blas_threads


def test_an_interrupt_as_a_block_ends_leaves_it_not_open(two_blas_threads):
    def interrupt(frame, event, _):
        if event == "call" and frame.f_code is one_blas_thread.__exit__.__code__:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), one_blas_thread():
        sys.setprofile(interrupt)
    assert not BLOCKS.open
    assert counts() == two_blas_threads
