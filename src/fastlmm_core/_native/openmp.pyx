"""OpenMP's threads in a forked child.

A fork copies the thread that forks and no other, but the OpenMP library of gcc goes on counting on those that it had
started: a parallel region of two threads then waits for ever. No level of parallel regions is allowed there instead:
each has one thread, whatever it asks for. Results do not depend on the number of threads.
"""

from openmp cimport omp_set_max_active_levels

__all__ = ["stay_on_one_thread"]


def stay_on_one_thread():
    """From now on parallel regions that the calling thread opens have one thread."""
    omp_set_max_active_levels(0)
