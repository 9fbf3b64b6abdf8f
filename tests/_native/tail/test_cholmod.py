"""The textbook engine against the others: the same criterion, estimates, modes and variances on every problem."""

from dataclasses import replace

import numpy as np
import pytest

import problems
from fastlmm_core import Control, glmer, lmer, load_dataset
from fastlmm_core.core import Model, plan
from fastlmm_core.errors import MemoryLimitError, NumericalError
from fastlmm_core.inference.generalised.uncertainty import leverages

CHOLMOD = Control("cholmod", threads=1)


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max(initial=0.0)))


@pytest.mark.parametrize("name", problems.REGISTRY)
@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
def test_every_registered_problem(name, reml):
    problem = problems.build(name)
    ours, textbook = (problem.objective(reml, engine, threads=1) for engine in ("dense", "cholmod"))
    assert textbook.plan.engine == "cholmod"
    assert textbook.plan.tail.m == sum(group.size for group in textbook.cross.groups)
    for theta in problems.thetas(problem).values():
        for a, b in zip(textbook.derivatives(theta), ours.derivatives(theta), strict=True):
            close(a, b, 1e-6)
    for theta in list(problems.thetas(problem).values())[:2]:
        a, b = textbook.at(theta), ours.at(theta)
        for x, y in zip((a.modes.gamma, *a.modes.b), (b.modes.gamma, *b.modes.b), strict=True):
            close(x, y, 1e-8)
        for x, y in zip(a.cond_var(), b.cond_var(), strict=True):
            close(x, y, 1e-8)
        rng = np.random.default_rng(0)
        right = [rng.normal(size=(group.size, 3)) for group in ours.cross.groups]
        for x, y in zip(a.solve(right), b.solve(right), strict=True):
            for u, v in zip(x, y, strict=True):
                close(u, v, 1e-8)


@pytest.mark.parametrize("name", ["crossed", "mixed_weights", "nested", "slope"])
def test_fits_and_rows(name):
    problem = problems.build(name)
    ours, textbook = (problem.fit(engine=engine) for engine in ("dense", "cholmod"))
    assert textbook.converged
    close(textbook.criterion, ours.criterion, 1e-9)
    close(textbook.theta, ours.theta, 1e-5)
    close(textbook.fitted, ours.fitted, 1e-5)
    with ours.workspace() as one, textbook.workspace() as two:
        groups = one.cross.groups
        codes = [problem.terms[g.terms[0]].codes for g in groups]
        design = Model(problem.X, problem.core_terms(), weights=problem.weights).products
        z = [np.ones((len(c), 1)) if x is None else x for c, x in zip(codes, design.columns, strict=True)]
        expected = one.at(ours.theta).random_forms(codes, z)
        close(two.at(ours.theta).random_forms(codes, z), expected, 1e-8)


@pytest.mark.parametrize("engine", ["dense", "sparse", "cholmod"])
def test_inference_runs_on_every_engine(engine):
    data = load_dataset("Penicillin")
    fit = lmer("diameter ~ 1 + (1|plate) + (1|sample)", data, control=Control(engine))
    reference = lmer("diameter ~ 1 + (1|plate) + (1|sample)", data)
    for method in ("satterthwaite", "kenward-roger"):
        ours, theirs = (f.coef_table(ddf=method) for f in (fit, reference))
        np.testing.assert_allclose(ours.to_numpy(float), theirs.to_numpy(float), rtol=1e-5)
    np.testing.assert_allclose(fit.hatvalues(), reference.hatvalues(), rtol=1e-6)
    new = data.assign(sample=data["sample"].iloc[::-1].to_numpy())
    np.testing.assert_allclose(fit.predict(new), reference.predict(new), rtol=1e-6)


def test_many_responses():
    problem = problems.build("crossed")
    Y = problem.y + np.random.default_rng(1).normal(size=(5, len(problem.y)))
    ours, textbook = (
        Model(problem.X, problem.core_terms(), control=control).fit_many(Y) for control in (Control("dense"), CHOLMOD)
    )
    close(textbook.theta, ours.theta, 1e-5)
    close(textbook.beta, ours.beta, 1e-7)


def test_values_that_are_not_numbers():
    objective = problems.build("mixed").objective(engine="cholmod")
    theta = objective.at(np.ones(objective.n_theta)).theta
    before = objective.evaluator.value(theta)
    for bad in (np.nan, np.inf, 1e200):
        wrong = theta.copy()
        wrong[-1] = bad
        with pytest.raises(NumericalError, match="factorisation failed"):
            objective.evaluator.value(wrong)
        assert objective.evaluator.value(theta) == before


def test_generalised_models_run_on_it():
    """Weights of every step are refilled; the modes, the deviance and the rows' leverages are those of the others."""
    data = load_dataset("grouseticks")
    fits = [
        glmer("TICKS ~ YEAR + (1 | BROOD) + (1 | LOCATION)", data, "poisson", control=Control(engine))
        for engine in ("auto", "cholmod")
    ]
    for name in ("theta", "beta", "criterion", "fitted"):
        close(*(getattr(fit.core, name) for fit in fits), 1e-5)
    close(*(np.asarray(fit.residuals("pearson")) for fit in fits), 1e-4)
    close(*(leverages(fit) for fit in fits), 1e-5)


def test_what_it_does_not_do_is_said():
    problem = problems.build("crossed")
    design = Model(problem.X, problem.core_terms()).products
    with pytest.raises(MemoryLimitError, match="cholmod"):
        plan(design, replace(CHOLMOD, memory_limit=1000))
