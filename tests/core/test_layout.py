"""The symbolic phase: which engine, which order, how many threads, how much memory."""

import re
import tracemalloc

import numpy as np
import pytest

import problems
from fastlmm_core._native.symbolic.ordering import fill_ordering
from fastlmm_core._native.symbolic.supernodes import dense_seconds
from fastlmm_core._native.tail.sparse import SparseTail
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail
from fastlmm_core.core import Control, Objective, Term, cross_products, engines, plan
from fastlmm_core.core.engines import DENSE_BELOW, pattern
from fastlmm_core.core.incidence import structures
from fastlmm_core.core.layout import PARALLEL_ABOVE, elimination_flops, engine_report
from fastlmm_core.datasets import load_dataset
from fastlmm_core.errors import MemoryLimitError


def nested(schools=120, classes=12, pupils=4, seed=0):
    """Pupils in classes in schools: classes lead, and the schools that are left meet nobody."""
    rng = np.random.default_rng(seed)
    districts = np.repeat(np.arange(schools * 6) // 6, classes * pupils)
    school = np.repeat(np.arange(schools * 6), classes * pupils)
    cls = np.repeat(np.arange(schools * 6 * classes), pupils)
    y = rng.normal(size=len(cls)) + rng.normal(size=schools * 6)[school]
    return cross_products(y, np.ones((len(y), 1)), [Term(cls), Term(school), Term(districts)])


def crossed(a=900, b=500, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    terms = [Term(rng.permutation(np.arange(n) % q)) for q in (a, b)]
    return cross_products(rng.normal(size=n), np.ones((n, 1)), terms)


def popular(q=1500, items=900, n=5000, seed=0):
    """Most items met once or twice, a few by everybody: leaves of every width around a large last panel."""
    rng = np.random.default_rng(seed)
    item = np.minimum(rng.pareto(0.6, n), 1e6).astype(np.int64) % items
    terms = [Term(rng.integers(0, q, n), n_levels=q), Term(item, n_levels=items)]
    return cross_products(rng.normal(size=n), np.ones((n, 1)), terms)


@pytest.fixture(scope="module")
def insteval():
    data = load_dataset("InstEval")
    terms = [Term(np.unique(np.asarray(data[name]), return_inverse=True)[1]) for name in ("s", "d")]
    y = np.asarray(data["y"], float)
    return cross_products(y, np.ones((len(y), 1)), terms)


def test_one_factor_needs_no_engine():
    for engine in ("auto", "dense", "sparse"):
        found = problems.build("slope").objective(engine=engine).plan
        assert (found.engine, found.factor_bytes, found.offsets) == ("none", 0, [])
        assert isinstance(found.tail, EmptyTail)


def test_nested_factors_are_sparse():
    cross = nested()
    assert cross.groups[1].size > DENSE_BELOW
    found = plan(cross)
    assert found.engine == "sparse"
    assert isinstance(found.tail, SparseTail)
    m = found.tail.m
    assert found.tail.cholesky.tree.entries <= 5 * m  # a school and its district, nothing else: next to no fill


def test_insteval_is_sparse(insteval):
    """Only a fifth of the pairs of lecturers share a student: an order leaves most of the flops in one panel."""
    found = plan(insteval)
    assert found.engine == "sparse"
    assert found.tail.m == 1128
    tree = found.tail.cholesky.tree
    assert tree.seconds < dense_seconds(tree.m) / 2


def test_full_tails_are_dense(monkeypatch):
    """Nobody looks at the pattern of one that a few rows show to be full."""
    monkeypatch.setattr(engines, "pattern", None)
    found = plan(crossed(n=40_000))
    assert found.tail.m > DENSE_BELOW
    assert isinstance(found.tail, DenseTail)


def test_the_cheaper_engine_is_taken():
    for n in (900, 1800, 4000, 8000, 16_000):
        found = plan(crossed(n=n))
        forced = plan(crossed(n=n), Control("sparse", threads=1))
        tree, dense = forced.tail.cholesky.tree, plan(crossed(n=n), Control("dense", threads=1))
        seconds = tree.seconds * max(1.0, forced.factor_bytes / dense.factor_bytes)
        assert found.engine == ("sparse" if seconds < dense_seconds(tree.m) else "dense")
        assert plan(crossed(n=n), Control(threads=7)).engine == found.engine


def test_the_engine_that_fits_is_taken():
    """The faster one only where there is memory for it."""
    cross = crossed(1800, 700, 6000)
    sizes = {engine: plan(cross, Control(engine, threads=1)).total_bytes for engine in ("dense", "sparse")}
    larger, smaller = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
    between = (sizes[larger] + sizes[smaller]) // 2
    assert plan(cross, Control(threads=1, memory_limit=between)).engine == smaller


def grid(side=60, seed=0):
    """Rows at random places, with one factor of cells and one of coarser, shifted cells: neighbours meet neighbours."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, side, (2, 4 * side * side))
    fine = np.floor(at).astype(int)
    coarse = np.floor(at * 0.7 + rng.uniform(-0.6, 0.6, at.shape)).clip(0).astype(int)
    terms = [Term(np.unique(a * 1000 + b, return_inverse=True)[1]) for a, b in (fine, coarse)]
    return cross_products(rng.normal(size=at.shape[1]), np.ones((at.shape[1], 1)), terms)


def test_the_order_does_not_change_the_criterion(monkeypatch):
    """AMD's, METIS's, and AMD's where CHOLMOD has no METIS."""
    answers, orders = [], []
    cross, ordering = grid(), fill_ordering
    assert ordering(np.array([0, 1]), np.array([0]), "metis") is not None, "this CHOLMOD was built without METIS"
    for methods in (("amd",), ("metis",), ("amd", "metis")):

        def only(ptr, idx, method, methods=methods):
            return ordering(ptr, idx, method) if method in methods else None

        monkeypatch.setattr(engines, "fill_ordering", only)
        monkeypatch.setattr(engines, "METIS_SECONDS", 0.0)
        objective = Objective(cross, True, Control("sparse"))
        answers.append(objective.derivatives(np.array([0.7, 0.9])))
        orders.append(objective.plan)
    for answer in answers[1:]:
        for a, b in zip(answer, answers[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())
    seconds = [found.tail.cholesky.tree.seconds for found in orders]
    assert not np.array_equal(orders[0].offsets[0], orders[1].offsets[0])
    assert seconds[2] == min(seconds)


def test_metis_is_tried_only_where_it_can_pay(monkeypatch):
    asked = []

    def counted(ptr, idx, method):
        asked.append(method)
        return fill_ordering(ptr, idx, method)

    monkeypatch.setattr(engines, "fill_ordering", counted)
    plan(nested())
    assert asked == ["amd"]


def test_small_tails_are_dense():
    for name in ("crossed", "nested", "mixed"):
        assert problems.build(name).objective().plan.engine == "dense"


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("cross", [nested(20), crossed(90, 50, 300)], ids=["nested", "crossed"])
def test_a_forced_engine_is_used(cross, engine):
    assert plan(cross, Control(engine)).engine == engine


def test_engines_agree_where_auto_would_take_the_other():
    for cross in (nested(40, 3, 2), crossed(600, 450, 2500), popular(), crossed(2500, 1200, 6000)):
        theta = np.full(len(cross.theta_index), 0.7)
        dense, sparse = (Objective(cross, True, Control(engine)).derivatives(theta) for engine in ("dense", "sparse"))
        for a, b in zip(dense, sparse, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7 * np.abs(b).max())


@pytest.mark.parametrize("engine", ["auto", "dense", "sparse"])
@pytest.mark.parametrize("name", ["crossed_four", "mixed", "shared_codes", "factor_slope", "unobserved_levels"])
def test_offsets_lay_out_the_tail(name, engine):
    """Blocks of a level's columns side by side, no gap, no overlap."""
    cross = problems.build(name).objective(engine=engine)
    offsets, groups = cross.plan.offsets, cross.cross.groups[1:]
    columns = [(o[:, None] + np.arange(g.n_columns)).ravel() for o, g in zip(offsets, groups, strict=True)]
    m = sum(g.size for g in groups)
    np.testing.assert_array_equal(np.sort(np.concatenate([*columns, np.empty(0, np.int64)])), np.arange(m))
    assert cross.plan.tail.m == m


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_memory_limit_names_both_figures(engine):
    cross = crossed(30_000, 20_000, 60_000) if engine == "dense" else crossed(900, 700, 6000)
    limit = 2**30 if engine == "dense" else 2**20
    with pytest.raises(MemoryLimitError) as caught:
        plan(cross, Control(engine, memory_limit=limit))
    message = str(caught.value)
    assert f"{limit / 2**30:.1f} GiB" in message
    assert "random effects" in message
    if engine == "dense":
        needed = float(re.search(r"would take ([\d.]+) GiB", message)[1])
        m = cross.groups[1].size
        assert needed == pytest.approx(8 * m**2 / 2**30, rel=0.25)
        assert "memory_limit" in message
    assert isinstance(caught.value, MemoryError)


def test_a_limit_that_suffices_is_no_obstacle():
    cross = crossed(90, 50, 300)
    for engine in ("dense", "sparse"):
        needed = plan(cross, Control(engine)).total_bytes
        assert plan(cross, Control(engine, memory_limit=2 * needed)).engine == engine
        with pytest.raises(MemoryLimitError):
            plan(cross, Control(engine, memory_limit=needed // 4))


def test_threads_wait_until_there_is_work():
    small, large = crossed(90, 50, 300), crossed()
    for cross, threads in ((small, 1), (large, 3)):
        m = cross.groups[1].size
        leading = structures(cross, [np.arange(m, dtype=np.int64)])[0]
        assert (elimination_flops(cross, leading[0], m) > PARALLEL_ABOVE) == (threads > 1)
        assert plan(cross, Control("dense", threads=3)).threads == threads
        assert plan(cross, Control("dense", threads=1)).threads == 1


def allocated(make):
    """Bytes that NumPy holds for what ``make`` returns."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = make()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return after - before, kept


@pytest.mark.parametrize("threads", [1, 2])
def test_predicted_bytes_of_the_dense_engine(threads):
    cross = crossed(900, 800, 4000)
    found = plan(cross, Control("dense", threads=threads))
    size, _ = allocated(lambda: DenseTail(structures(cross, found.offsets)[1], threads))
    rows = structures(cross, found.offsets)[1]
    size -= sum(a.nbytes for a in rows)
    assert found.factor_bytes == pytest.approx(size, rel=0.2)


@pytest.mark.parametrize("threads", [1, 3])
def test_predicted_bytes_of_the_sparse_engine(threads):
    cross = crossed(1800, 700, 4000)
    found = plan(cross, Control("sparse", threads=threads))
    leading, rows = structures(cross, found.offsets)
    size, again = allocated(lambda: SparseTail(rows, *pattern(leading, rows, 10**9), found.threads))
    assert found.threads == threads
    assert again.cholesky.tree.entries == found.tail.cholesky.tree.entries
    assert found.factor_bytes == pytest.approx(size, rel=0.05)


def test_a_plan_of_a_plan_is_the_same():
    """Ordering and engine are a function of the cross-products and the options alone."""
    cross = nested(30)
    one, two = plan(cross, Control("sparse")), plan(cross, Control("sparse"))
    for a, b in zip(one.offsets, two.offsets, strict=True):
        np.testing.assert_array_equal(a, b)
    for key, value in one.arrays.items():
        np.testing.assert_array_equal(value, two.arrays[key])


def test_the_report_says_what_each_engine_would_cost():
    small, sparse, full = plan(crossed(90, 50, 300)), plan(nested()), plan(crossed(n=40_000))
    assert "too few" in str(engine_report(small))
    for made, other in ((sparse, "dense"), (full, "sparse")):
        found = engine_report(made)
        assert found.engine == made.engine
        assert found.costs[made.engine].seconds <= found.costs[other].seconds
        assert f"Engine: {made.engine} ({made.tail.m} random effects in its tail)" in str(found)
        assert set(found.costs) == {"dense", "sparse", "cholmod"}
    assert "it was asked for" in str(engine_report(plan(crossed(90, 50, 300), Control("sparse"))))
    assert "nothing is left" in str(engine_report(problems.build("slope").objective().plan))
