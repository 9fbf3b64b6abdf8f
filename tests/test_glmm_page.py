"""The page on generalised models: its code runs, its figures are so."""

import re
from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose

PAGE = Path(__file__).parents[1] / "docs" / "glmm.md"


def test_the_pages_code_runs(capsys):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    # all but the check over pairs of rows, which takes seconds
    code = "\n".join(blocks).replace("fit.laplace_check()\n", "")
    exec(compile(code, str(PAGE), "exec"), names)
    assert "'Y' counts as success" in capsys.readouterr().out
    fit, new = names["fit"], names["new"]
    assert_allclose(fit.llf, -4076, atol=1)
    population, marginal = (fit.predict(new, kind=kind).to_numpy() for kind in ("population", "marginal"))
    assert (np.abs(marginal - 0.5) < np.abs(population - 0.5)).all()
