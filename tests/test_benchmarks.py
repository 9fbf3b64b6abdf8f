"""The benchmark suite itself: problems build, measurements are read rightly, tables say what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from benchmarks import bits, generators, growth, large, report, seeds, structures_large
from benchmarks.__main__ import main, sensible, wanted
from benchmarks.adapters import ADAPTERS, TASKS, Outcome, adapter, other_response
from benchmarks.compare import Comparison
from benchmarks.goals import GOALS
from benchmarks.phases import phases
from benchmarks.problems import PROBLEMS, SHORT, problem
from benchmarks.reweight import Refilled
from benchmarks.runner import Limits, Series, measure, middle
from benchmarks.tables import read_table, write_table

import problems
from fastlmm_core import lmer
from fastlmm_core.core import Control
from fastlmm_core.core.crossprod import DesignProducts

GENERATED = [name for name, p in PROBLEMS.items() if p.small]


def series(adapter: str, *seconds: float, task: str = "fit", criterion: float | None = None) -> Series:
    return Series("sleepstudy", adapter, task, list(seconds), 100.0, criterion, 10)


LINEAR = [name for name, p in PROBLEMS.items() if p.linear and not name.startswith("insteval")]


@pytest.mark.parametrize("name", LINEAR)
def test_every_problem_can_be_fitted(name):
    p = problem(name)
    small = p.but(size=p.small)
    found, evaluations = phases(small, small.table(), rounds=1)
    assert 1 <= evaluations < 60
    assert found.total > 0


@pytest.mark.parametrize("name", [name for name, p in PROBLEMS.items() if not p.linear])
@pytest.mark.filterwarnings("ignore::fastlmm_core.errors.LaplaceWarning")
def test_every_generalised_problem_can_be_fitted(name):
    p = problem(name)
    call = adapter("fastlmm_core").prepare(p, p.small_table(), "fit")
    result = call.run()
    found = call.outcome(result)
    assert result.converged
    assert not result.is_singular
    assert found.criterion == pytest.approx(-2.0 * result.llf)
    assert p.criterion == f"{p.family}, Laplace"
    assert not p.reml


@pytest.mark.parametrize("name", large.PROBLEMS)
def test_large_problems_are_streams(name, tmp_path):
    p = large.PROBLEMS[name]
    fit = lmer(p.formula, p.make(1, **p.small))
    assert fit.converged
    assert not fit.is_singular
    assert fit.nobs == large.BATCH
    if p.files:
        large.write(replace(p, files=2, make=lambda n: p.make(n, **p.small)), 2 * large.BATCH, str(tmp_path / "rows"))
        assert lmer(p.formula, tmp_path / "rows").nobs == 2 * large.BATCH


def test_errors_over_seeds_are_told():
    text = seeds.table(seeds.FORMULAS[0], 2)
    assert "2 seeds" in text
    assert "over its claim" in text


def test_a_pair_is_read_off_the_formula():
    assert problem("cbpp").pair == ("incidence", "healthy")
    assert problem("verbagg").pair is None


def test_degrees_of_freedom_are_part_of_their_task():
    p = problem("penicillin")
    call = adapter("fastlmm_core").prepare(p, p.small_table(), "satterthwaite")
    assert call.outcome(call.run()).criterion == pytest.approx(332.1883, abs=1e-4)


@pytest.mark.parametrize("name", GENERATED)
def test_generators_repeat_themselves(name):
    first, second = problem(name).small_table(), problem(name).small_table()
    assert first.equals(second)
    assert np.isfinite(first.select_dtypes("float")).all().all()


def test_ratings_are_distinct_pairs_of_all_levels_with_heavy_tails():
    table = generators.ratings(400, 250, 12_000)
    assert len(table) == 12_000
    assert not table.duplicated(["user", "item"]).any()
    assert table.user.nunique() == 400
    assert table["item"].nunique() == 250
    degree = table["item"].value_counts()
    assert degree.median() < 0.75 * degree.mean()
    assert degree.max() > 4 * degree.mean()


def test_few_ratings_still_show_every_level():
    table = generators.ratings(50, 30, 55)
    assert (table.user.nunique(), table["item"].nunique()) == (50, 30)
    with pytest.raises(ValueError, match="do not fit"):
        generators.ratings(50, 30, 40)


def test_students_are_nested():
    table = generators.schools(6_000, per_class=10, per_school=5, per_district=4)
    assert len(table.groupby(["district", "school", "class_"])) == 600
    assert len(table.groupby(["district", "school"])) == 120
    assert table.district.nunique() == 30


def test_tables_survive_the_disk(tmp_path):
    for name in ("insteval-3", "ratings-866k"):
        table = problem(name).small_table()
        write_table(table, tmp_path / name)
        # whole numbers come back as 32-bit ones
        pd.testing.assert_frame_equal(read_table(tmp_path / name), table, check_dtype=False)


def test_a_damaged_table_is_refused(tmp_path):
    write_table(problem("sleepstudy").table(), tmp_path / "t")
    (tmp_path / "t" / "0.bin").write_bytes(b"")
    with pytest.raises(OSError, match="has 0 rows"):
        read_table(tmp_path / "t")


def test_every_adapter_says_what_it_cannot_do():
    for name in ADAPTERS:
        module = adapter(name)
        assert callable(module.versions)
        for model in ("insteval-slope", "verbagg"):
            assert all(isinstance(module.unfit(problem(model), task), str) for task in TASKS)
        assert hasattr(module, "prepare") or hasattr(module, "command")
    with pytest.raises(KeyError, match="there are fastlmm_core"):
        adapter("lme5")


def test_every_task_and_goal_has_an_adapter():
    for p in PROBLEMS.values():
        assert all(any(sensible(peer, task) for peer in ADAPTERS) for task in p.tasks)
    for goal in GOALS:
        for peer, task in (goal.numerator, goal.denominator):
            assert task in problem(goal.problem).tasks
            assert sensible(peer, task)


def test_the_short_set_covers_every_goal():
    from benchmarks.__main__ import parser

    measured = {(name, *pair) for name in SHORT for pair in wanted(name, parser().parse_args([]))}
    for goal in GOALS:
        assert {(goal.problem, *goal.numerator), (goal.problem, *goal.denominator)} <= measured


def test_a_measurement_from_end_to_end(tmp_path, capsys):
    arguments = "-p dyestuff -a fastlmm_core --rounds 2 --batch 0 --threads 1 --output"
    assert main([*arguments.split(), str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "### dyestuff" in text
    assert "319.6543" in text
    (found,) = json.loads((tmp_path / "out.json").read_text())["series"]
    assert len(found["seconds"]) == 2
    assert found["peak_mb"] is None or found["peak_mb"] > 10
    assert found["versions"]["fastlmm_core"]


def test_a_failing_peer_is_a_note_not_an_end(tmp_path):
    said: list[str] = []
    limits = Limits(rounds=1, batch=0.0, patience=60.0)
    (found,) = measure(problem("dyestuff"), [("pandas", "fit")], 1, limits, tmp_path, said.append)
    assert found.absent
    assert not found.seconds
    assert said


def test_ratios_are_medians_over_rounds():
    # the medians' ratio would be 1: one machine-wide pause in the second round must not count
    ours, peer = series("fastlmm_core", 1.0, 8.0, 1.0), series("lme4", 3.0, 24.0, 4.0)
    assert report.ratio(peer, ours) == (3.0, 3)
    assert report.ratio(series("lme4"), ours) is None
    assert middle([4.0, 1.0, 3.0, 2.0]) == 2.0


def test_a_worse_criterion_is_marked():
    ours, peer = series("fastlmm_core", 1.0, criterion=100.0), series("gpboost", 2.0, criterion=100.5)
    close = series("lme4", 2.0, criterion=100.0 + 1e-6)
    text = report.markdown([ours, peer, close], dict.fromkeys(MACHINE, 1), PROBLEMS, "bench")
    lines = {cells[1]: line for line in text.splitlines() if len(cells := line.split()) > 1}
    assert "worse by 0.5" in lines["gpboost"]
    assert "worse" not in lines["lme4"] + lines["fastlmm_core"]
    assert "2.0×" in lines["gpboost"]


MACHINE = ("cpu", "cpus", "threads", "memory_gib", "python", "commit", "date")


def test_goals_are_judged():
    ours, peer = series("fastlmm_core", 1.0), series("lme4", 7.0)
    (line,) = [line for line in report.goal_lines([ours, peer]) if "lme4" in line]
    assert "7.0×" in line
    assert "met" in line
    assert report.goal_lines([ours]) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.345, "12.3 s"),
        (1.2345, "1.23 s"),
        (0.012345, "12.3 ms"),
        (1.5e-7, "0.15 µs"),
        (123.4, "123 s"),
        (5e-4, "500 µs"),
    ],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_a_regression_needs_both_limits():
    def judged(base, head):
        return Comparison("p", 0.1, 1e-3, [base] * 3, [head] * 3).regressed

    assert judged(1.0, 1.2)
    assert not judged(1.0, 1.05)  # within the relative limit
    assert not judged(1e-4, 5e-4)  # within the absolute one
    assert not judged(1.0, 0.5)


def test_the_other_response_is_another():
    y = np.arange(10.0)
    assert not np.allclose(other_response(y), y)
    assert Outcome(per=3).as_dict()["per"] == 3


def test_growth_has_a_problem_at_every_size(tmp_path):
    for ladder in growth.LADDERS:
        small = ladder.problem(ladder.sizes[0])
        assert len(small.table()) >= 1_000
        assert small.formula == ladder.formula


def test_growth_writes_its_report(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(growth, "LADDERS", growth.LADDERS[1:3])
    monkeypatch.setattr(growth, "pin", lambda threads: None)
    assert growth.main(["--largest", "10000", "--rounds", "1", "--threads", "1", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"growth.md", "growth.svg", "growth.json"}
    assert "| 10,000 |" in (tmp_path / "growth.md").read_text()


def test_bits_are_compared_one_by_one():
    first = {"a": np.array([1.0, 2.0]), "b": np.zeros(2), "c": np.ones(1)}
    second = {"a": np.array([1.0, np.nextafter(2.0, 3.0)]), "b": np.zeros(3), "c": np.ones(1), "d": np.ones(1)}
    assert bits.compare(first, first) == []
    lines = bits.compare(first, second)
    assert [line.split(":")[0] for line in lines] == ["a", "b"]
    assert "differs by up to 4.44e-16" in lines[0]
    assert bits.compare({"z": np.zeros(1)}, {"z": -np.zeros(1)})  # the sign of a zero is a bit


@pytest.mark.parametrize("name", ["slope", "crossed", "mixed"])
def test_weights_that_are_refilled_give_the_criterion_of_a_new_plan(name):
    model, control = problems.build(name), Control(threads=1)
    many = Refilled(DesignProducts(model.X, model.core_terms(), offset=model.offset), model.y, True, control)
    w = np.random.default_rng(0).uniform(0.2, 3.0, len(model.y))
    many.reweight(w)
    theta = problems.thetas(model)["ordinary"]
    anew = model.but(weights=w).objective(True, "auto", threads=1).derivatives(theta)
    for got, expected in zip(many.derivatives(theta), anew, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("name", structures_large.PROBLEMS)
def test_large_structures_build_and_fit_small(name):
    row = structures_large.measured(name, 0.01)
    assert row[0] == name
    assert np.isfinite(float(row[-1]))
