from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fastlmm_core.datasets import load_dataset
from fastlmm_core.errors import FormulaWarning
from fastlmm_core.formula import build_design, parse_formula
from small_table import DATA, N, build


def test_a_small_model() -> None:
    design = build("y ~ x + f + (x | g) + (1 | h)")
    np.testing.assert_array_equal(design.y, DATA["y"])
    np.testing.assert_array_equal(design.X, np.column_stack([np.ones(N), DATA["x"], DATA["f"] == "hi"]))
    assert design.X.flags.c_contiguous
    assert design.x_names == ("Intercept", "x", "f[T.hi]")
    assert design.x_terms == (("Intercept", slice(0, 1)), ("x", slice(1, 2)), ("f", slice(2, 3)))
    slopes, intercepts = design.random
    assert (slopes.group, slopes.grp, slopes.columns) == ("g", "g", ("Intercept", "x"))
    np.testing.assert_array_equal(slopes.z, np.column_stack([np.ones(N), DATA["x"]]))
    assert slopes.levels.tolist() == [f"g{i}" for i in range(6)]
    np.testing.assert_array_equal(slopes.codes, np.tile(np.arange(6), 8))
    assert slopes.codes.dtype == np.int32
    assert (intercepts.columns, intercepts.z) == (("Intercept",), None)
    assert intercepts.levels.tolist() == [4, 30, 100]
    assert (design.weights, design.offset) == (None, None)
    assert (design.n_total, design.n_missing) == (N, 0)
    assert design.row_index.tolist() == list(range(N))
    assert design.index.equals(DATA.index)


@pytest.mark.parametrize(
    ("text", "columns", "z"),
    [
        ("(0 + x | g)", ("x",), lambda d: d[["x"]]),
        ("(f | g)", ("Intercept", "f[T.hi]"), lambda d: np.column_stack([np.ones(N), d["f"] == "hi"])),
        ("(0 + f | g)", ("f[lo]", "f[hi]"), lambda d: np.column_stack([d["f"] == "lo", d["f"] == "hi"])),
        ("(0 + log(z) | g)", ("log(z)",), lambda d: np.log(d[["z"]])),
        ("(0 + I(x^2) | g)", ("I(x ** 2)",), lambda d: d[["x"]] ** 2),
        ("(0 + `a b` | g)", ("a b",), lambda d: d[["a b"]]),
        ("(0 + scale(x) | g)", ("scale(x)",), lambda d: (d[["x"]] - d["x"].mean()) / d["x"].std()),
        ("(0 + x:f | g)", ("x:f[lo]", "x:f[hi]"), lambda d: np.outer(d["x"], [1, 1]) * pd.get_dummies(d["f"])),
    ],
)
def test_columns_of_random_terms(text: str, columns: tuple[str, ...], z: Callable[[pd.DataFrame], Any]) -> None:
    term = build(f"y ~ x + {text}").random[0]
    assert term.columns == columns
    np.testing.assert_allclose(term.z, np.asarray(z(DATA), dtype=float), rtol=1e-12)


def test_poly_in_a_random_term() -> None:
    design = build("y ~ poly(x, 2) + (0 + poly(x, 2) | g)")
    assert design.random[0].columns == ("poly(x, 2)[1]", "poly(x, 2)[2]")
    np.testing.assert_array_equal(design.random[0].z, design.X[:, 1:])


def order(formula: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(term.grp, term.columns) for term in build(formula).random]


def test_order_and_unique_names() -> None:
    one, x = ("Intercept",), ("x",)
    assert order("y ~ x + (x || g)") == [("g", one), ("g.1", x)]
    assert order("y ~ (1 | g) + (0 + x | g) + (1 | h)") == [("g", one), ("g.1", x), ("h", one)]
    assert order("y ~ (1 | few) + (1 | h) + (1 | g)") == [("g", one), ("h", one), ("few", one)]
    # lme4 reverses an ascending sort, and with it the order among equals
    assert order("y ~ (1 | h) + (1 | g) + (0 + x | g)") == [("g", x), ("g.1", one), ("h", one)]
    assert order("y ~ (1 | h/few)") == [("few:h", one), ("h", one)]


def test_a_factor_slope_stays_one_block_under_double_bars() -> None:
    with pytest.warns(FormulaWarning, match=r"diag\(f \| g\) has independent ones"):
        assert order("y ~ f + (f || g)") == [("g", ("Intercept",)), ("g.1", ("f[lo]", "f[hi]"))]
    order("y ~ f + (f || g)")  # said once
    order("y ~ x + (x || h)")


def test_diag_has_independent_columns() -> None:
    assert order("y ~ diag(1 + x | h)") == [("h", ("Intercept",)), ("h.1", ("x",))]
    design = build("y ~ x + diag(0 + f:x | g) + (1 | h)")
    assert [(t.grp, t.columns) for t in design.random] == [
        ("g", ("f[lo]:x",)),
        ("g.1", ("f[hi]:x",)),
        ("h", ("Intercept",)),
    ]
    whole = build("y ~ x + (0 + f:x | g)").random[0]
    new = pickle.loads(pickle.dumps(design)).rebuild(DATA)
    for j in range(2):
        np.testing.assert_array_equal(design.random[j].z[:, 0], whole.z[:, j])
        np.testing.assert_array_equal(new.random[j].z[:, 0], whole.z[:, j])
    assert order("y ~ us(1 + x | h)") == order("y ~ (x | h)")


def test_terms_on_one_group_share_codes() -> None:
    first, second = build("y ~ x + (x || g)").random
    assert first.codes is second.codes


def test_interaction_groups() -> None:
    nested, single = build("y ~ x + (1 | h/few)").random
    assert (nested.group, single.group) == ("few:h", "h")
    assert nested.levels.tolist() == ["p:4", "p:30", "p:100", "q:4", "q:30", "q:100"]
    np.testing.assert_array_equal(
        nested.codes, [3 * "pq".index(f) + [4, 30, 100].index(h) for f, h in DATA[["few", "h"]].to_numpy()]
    )
    assert build("y ~ (1 | h:few)").random[0].levels.tolist()[:3] == ["4:p", "4:q", "30:p"]


def test_only_combinations_that_occur() -> None:
    data = DATA[~((DATA["few"] == "p") & (DATA["h"] == 4))]
    assert build("y ~ (1 | few:h)", data).random[0].levels.tolist() == ["p:30", "p:100", "q:4", "q:30", "q:100"]


@pytest.mark.parametrize(
    ("text", "intercept"), [("y ~ (1 | g)", True), ("y ~ 0 + (1 | g)", False), ("y ~ 0 + x + (1 | g)", False)]
)
def test_intercept(text: str, intercept: bool) -> None:
    design = build(text)
    assert ("Intercept" in design.x_names) is intercept
    assert design.X.shape == (N, len(design.x_names))


def test_responses() -> None:
    np.testing.assert_array_equal(build("log(z) ~ x + (1 | g)").y, np.log(DATA["z"]))
    np.testing.assert_array_equal(build("`a b` ~ x + (1 | g)").y, DATA["a b"])
    np.testing.assert_array_equal(build("z^2 + h ~ x + (1 | g)").y, DATA["z"] ** 2 + DATA["h"])


TABLES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "polars": lambda d: pl.DataFrame(
        {c: pl.Series(v.tolist(), dtype=pl.Enum(["lo", "hi"]) if c == "f" else None) for c, v in d.items()}
    ),
    "lazy": lambda d: TABLES["polars"](d).lazy(),
    "pyarrow": lambda d: pa.Table.from_pandas(d, preserve_index=False),
    "dict": lambda d: {c: v.array if c == "f" else np.asarray(v) for c, v in d.items()},
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_of_table_gives_the_same_design(kind: str) -> None:
    data = DATA.assign(x=DATA["x"].where(np.arange(N) != 5))
    formula = "log(z) ~ poly(x, 2) * f + `a b` + offset(x / 2) + (x || g) + (1 | h:few)"
    kwargs = {"subset": "z < 1.9 & few != 'r'", "weights": "w + 1", "offset": "w"}
    expected, design = build(formula, data, **kwargs), build(formula, TABLES[kind](data), **kwargs)
    for name in ("y", "X", "weights", "offset", "row_index"):
        np.testing.assert_array_equal(getattr(design, name), getattr(expected, name), err_msg=name)
    assert (design.x_names, design.n_missing, design.index) == (expected.x_names, 1, None)
    for mine, theirs in zip(design.random, expected.random, strict=True):
        np.testing.assert_array_equal(mine.codes, theirs.codes)
        assert mine.levels.tolist() == theirs.levels.tolist()
    new = [d.rebuild(TABLES[kind](DATA[:4])) for d in (design, expected)]
    np.testing.assert_array_equal(new[0].X, new[1].X)


def test_transforms_see_the_rows_that_subset_leaves_out() -> None:
    # as in R: model.frame evaluates the variables first
    design = build("y ~ scale(x) + (1 | g)", subset="h != 100")
    expected = (DATA["x"] - DATA["x"].mean()) / DATA["x"].std()
    np.testing.assert_allclose(design.X[:, 1], expected[DATA["h"] != 100])


def test_unused_levels_are_dropped() -> None:
    data = DATA.assign(g=pd.Categorical(DATA["g"], categories=[*sorted(DATA["g"].unique(), reverse=True), "never"]))
    design = build("y ~ g + (1 | g)", data, subset="g != 'g2'")
    assert design.random[0].levels.tolist() == ["g5", "g4", "g3", "g1", "g0"]
    assert design.x_names == ("Intercept", "g[T.g4]", "g[T.g3]", "g[T.g1]", "g[T.g0]")


def test_weights_and_offset() -> None:
    design = build("y ~ x + offset(z) + (1 | g)", weights="w", offset=DATA["x"].to_numpy(), subset="h > 4")
    rows = DATA["h"] > 4
    np.testing.assert_array_equal(design.weights, DATA["w"][rows])
    np.testing.assert_array_equal(design.offset, (DATA["z"] + DATA["x"])[rows])


def test_dot_is_every_other_column() -> None:
    data = DATA[["y", "x", "g", "few", "a b", "z"]]
    assert build("y ~ . + (1 | g)", data).x_names == ("Intercept", "x", "few[T.q]", "a b", "z")
    assert build("log(z) ~ . - x + (1 | g:few)", data).x_names == ("Intercept", "y", "a b")
    assert build("y ~ . + offset(z) + (1 | factor(g))", data).x_names == ("Intercept", "x", "few[T.q]", "a b")


def test_groups_may_be_computed() -> None:
    expected = build("y ~ x + (1 | g) + (1 | few:h)")
    found = build("y ~ x + (1 | factor(g)) + (1 | interaction(h, few))")
    assert [t.group for t in found.random] == ["factor(g)", "interaction(h, few)"]
    for mine, theirs in zip(found.random, expected.random, strict=True):
        np.testing.assert_array_equal(mine.codes, theirs.codes)
    assert found.random[1].levels.tolist()[:2] == ["4.p", "30.p"]
    again = pickle.loads(pickle.dumps(found)).rebuild(DATA.iloc[[7, 3]])
    assert [part.codes.tolist() for part in again.random] == [t.codes[[7, 3]].tolist() for t in found.random]


def test_contrasts_belong_to_the_fixed_part() -> None:
    design = build("y ~ f + (f | g)", contrasts={"f": "sum"})
    assert design.x_names == ("Intercept", "f[S.lo]")
    assert design.random[0].columns == ("Intercept", "f[T.hi]")


def double(x: Any) -> Any:
    return 2 * x


def test_the_callers_names() -> None:
    design = build("y ~ double(x) + (1 | g)", env={"double": double})
    np.testing.assert_array_equal(design.X[:, 1], 2 * DATA["x"])
    again = pickle.loads(pickle.dumps(design))
    np.testing.assert_array_equal(again.rebuild(DATA).X, design.X)


def test_a_parsed_formula_will_do() -> None:
    parsed = parse_formula("y ~ x + (1 | g)")
    assert build_design(parsed, DATA).formula is parsed


def test_a_design_keeps_no_part_of_the_table() -> None:
    codes = np.tile(np.arange(6, dtype=np.int32), 8)
    data = pd.DataFrame({"y": np.arange(N, dtype=float), "w": np.ones(N), "x": np.ones(N)})
    data["g"] = pd.Categorical.from_codes(codes, categories=list("abcdef"))
    design = build("y ~ 0 + x + (1 | g)", data, weights="w", offset="x")
    arrays = [data[c].to_numpy() for c in ("y", "w", "x")] + [data["g"].array.codes]
    for mine in (design.y, design.X, design.weights, design.random[0].codes):
        assert not any(np.shares_memory(mine, theirs) for theirs in arrays)


@pytest.mark.parametrize("text", ["x.1", "log(x.1)", "I(x.1^2)"])
def test_dotted_names(text: str) -> None:
    data = DATA.rename(columns={"z": "x.1"})
    expected = {"x.1": DATA["z"], "log(x.1)": np.log(DATA["z"]), "I(x.1^2)": DATA["z"] ** 2}[text]
    np.testing.assert_allclose(build(f"y ~ {text} + (1 | g)", data).X[:, 1], expected)
    np.testing.assert_allclose(build(f"{text} ~ x + (1 | g)", data).y, expected)
    np.testing.assert_allclose(build(f"y ~ x + offset({text}) + (0 + {text} | g)", data).offset, expected)
    np.testing.assert_array_equal(build(data=data, subset="x.1 > 1.5").row_index, np.flatnonzero(DATA["z"] > 1.5))


def test_booleans_are_factors() -> None:
    design = build("y ~ flag + (flag | g)", DATA.assign(flag=DATA["x"] > 0))
    assert design.x_names == ("Intercept", "flag[T.True]")
    assert design.random[0].columns == ("Intercept", "flag[T.True]")
    np.testing.assert_array_equal(design.rebuild({"flag": [False, True]}, random=False).X, [[1, 0], [1, 1]])
    # one value only is no new level
    np.testing.assert_array_equal(design.rebuild({"flag": [True]}, random=False).X, [[1, 1]])


def test_sleepstudy_poly_is_r_s() -> None:
    data = load_dataset("sleepstudy")
    design = build("log(Reaction) ~ poly(Days, 2) + (1 | Subject)", data)
    assert design.x_names == ("Intercept", "poly(Days, 2)[1]", "poly(Days, 2)[2]")
    # balanced, so that the fixed effects are those of least squares; lme4's first is 1.29742125338071
    beta = np.linalg.lstsq(design.X, design.y, rcond=None)[0]
    np.testing.assert_allclose(beta[1], 1.29742125338071, rtol=1e-12)


def test_cake_columns_are_r_s() -> None:
    design = build("angle ~ recipe * temperature + (1 | recipe:replicate)", load_dataset("cake"))
    temperatures = [".L", ".Q", ".C", "^4", "^5"]
    assert design.x_names == (
        "Intercept",
        "recipe[T.B]",
        "recipe[T.C]",
        *(f"temperature[{t}]" for t in temperatures),
        *(f"recipe[T.{r}]:temperature[{t}]" for t in temperatures for r in "BC"),
    )
    assert design.random[0].levels[:2].tolist() == ["A:1", "A:2"]
    assert len(design.random[0].levels) == 45


def test_insteval_takes_milliseconds() -> None:
    data = load_dataset("InstEval")
    formula = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"
    design = build(formula, data)
    assert [(term.group, len(term.levels)) for term in design.random] == [
        ("s", 2972),
        ("d", 1128),
        ("dept:service", 28),
    ]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        build(formula, data)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2  # about 4 ms on an idle machine
