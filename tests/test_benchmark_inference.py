"""The benchmarks of inference: coverage counts what it should, times are read rightly, both write their page."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import coverage, coverage_page, inference
from benchmarks.coverage import STUDIES, Coverage, exact_profile, simulate_coverage
from benchmarks.inference import PAIRS, TASKS, Timing, pair_lines, task_lines

INTERCEPT = STUDIES[0]


def test_a_count_of_intervals():
    entry = Coverage("profile", "x")
    entry.add(0.0, 2.0, 1.0)
    entry.add(2.0, 3.0, 1.0)
    entry.add(np.nan, 3.0, 1.0)
    entry.add([0.0, 5.0], [1.0, 6.0], [0.5, 0.5])
    assert entry.held == [1.0, 0.0, 0.0, 0.5]
    assert entry.undefined == 1
    assert entry.share == pytest.approx(0.375)
    assert entry.error == pytest.approx(np.std(entry.held, ddof=1) / 2.0)


@pytest.mark.parametrize(("share", "verdict"), [(0.95, "met"), (0.925, "**missed**, within the error"), (0.85, "**mi")])
def test_the_verdict_knows_its_error(share, verdict):
    held = [1.0] * round(400 * share) + [0.0] * round(400 * (1 - share))
    assert Coverage("profile", "x", held).verdict.startswith(verdict)
    assert Coverage("Wald, normal", "x", held).verdict == ""


def test_the_deviance_rises_by_the_quantile_at_profile_limits():
    outcome = simulate_coverage(STUDIES[1], 2, seed=3, quick=True)
    np.testing.assert_allclose(coverage.deviance_rises(outcome, outcome.limits), 3.841459, atol=2e-3)


def test_draws_do_not_depend_on_their_number():
    few, more = (simulate_coverage(INTERCEPT, n, seed=1, quick=True) for n in (2, 3))
    np.testing.assert_array_equal(few.responses, more.responses[:2])
    np.testing.assert_array_equal(few.limits, more.limits[:2])


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.name)
def test_draws_have_the_moments_of_the_study(study):
    rng = np.random.default_rng(5)
    rows = study.rows(rng).iloc[:4]
    drawn = np.array(
        [study.draw(rng, rows, np.tile(rng.normal(size=len(study.sd)) @ study.factor.T, (4, 1))) for _ in range(6_000)]
    )
    z = np.column_stack([np.ones(4), rows["x"]])[:, : len(study.sd)]
    groups = study.factor @ study.factor.T
    expected = z @ groups @ z.T + np.eye(4)
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.2)
    mean = np.column_stack([np.ones(4), rows["x"], rows["w"]]) @ list(coverage.BETA.values())
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.1)


def test_the_exact_coverage_of_a_profile_interval():
    # simulated: least squares on 6 group means, deviance m log(rss_0 / rss)
    rng = np.random.default_rng(2)
    X = np.column_stack([np.ones(6), rng.normal(size=6)])
    y = rng.normal(size=(40_000, 6))
    rss = np.square(y - y @ np.linalg.pinv(X).T @ X.T).sum(axis=1)
    rss0 = np.square(y - y.mean(axis=1, keepdims=True)).sum(axis=1)
    simulated = np.mean(6 * np.log(rss0 / rss) < 3.841459)
    assert exact_profile(6) == pytest.approx(simulated, abs=0.006)
    assert exact_profile(10_000) == pytest.approx(0.95, abs=1e-4)


def test_coverage_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage_page, "pin", lambda _: None)  # the other tests keep their processors
    assert coverage.main(["--draws", "3", "--compare", "0", "--seed", "4", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "coverage.md").read_text()
    assert "seed 4" in page
    for word in ("Wald", "Satterthwaite t", "Kenward–Roger t", "profile", "known groups", "new groups"):
        assert word in page.partition("## Reading it")[0]
    assert "sd_Intercept\\|group" in page


def test_ratios_are_taken_within_rounds():
    timings = [Timing(task.name, [2.0, 4.0, 90.0], [1.0, 2.0, 30.0]) for task in TASKS]
    assert timings[0].ratio() == 2.0
    lines = task_lines(timings)
    assert "at most 3×" in lines[3]
    assert "met" in lines[3]
    assert "**missed**" in lines[-1]


def test_what_lme4_takes_is_divided_by_ours():
    lines = pair_lines([Timing(pair.name, [0.01, 0.02], [1.0, 2.0]) for pair in PAIRS])
    assert "100×" in lines[2]
    assert "met" in lines[2]
    absent = pair_lines([Timing(pair.name, [0.01]) for pair in PAIRS])
    assert "not installed" in absent[2]


def test_inference_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(inference.shutil, "which", lambda _: None)  # without R
    monkeypatch.setattr(inference, "REPEAT", 0.0)
    monkeypatch.setattr(inference, "pin", lambda _: None)
    assert inference.main(["--small", "--rounds", "1", "--pairs", "1", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "inference.md").read_text()
    for task in TASKS:
        assert task.name in page
    assert "lme4 not installed" in page
