"""Generalised models of crossed factors whose tail is too large to be factored.

    rows (any weights) -> modes (Newton, a solve a step) -> laplace (equations from probes) -> fitted (search, errors)

What `core.iterative` has for linear models does the rest: the reduced system, the probes' traces, the search.
"""
