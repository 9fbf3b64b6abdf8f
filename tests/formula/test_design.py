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
from fastlmm_core.errors import DataError, FormulaError, FormulaWarning, ModelError
from fastlmm_core.formula import Design, build_design, parse_formula

RNG = np.random.default_rng(3)
N = 48
DATA = pd.DataFrame(
    {
        "y": RNG.normal(size=N),
        "x": RNG.normal(size=N),
        "z": RNG.uniform(1, 2, N),
        "w": RNG.uniform(1, 2, N),
        "f": pd.Categorical(RNG.choice(["lo", "hi"], N), categories=["lo", "hi"]),
        "g": np.tile([f"g{i}" for i in range(6)], 8),
        "h": np.repeat([30, 4, 100], 16),
        "few": np.tile(["p", "q"], 24),
        "a b": RNG.normal(size=N),
    },
    index=[f"row{i}" for i in range(N)],
)


def build(formula: str = "y ~ x + (1 | g)", data: Any = DATA, **kwargs: Any) -> Design:
    return build_design(formula, data, **kwargs)


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


def test_subset_comes_before_missing_rows() -> None:
    data = DATA.assign(x=DATA["x"].where(~np.isin(np.arange(N), [0, 1, 40])))
    design = build(data=data, subset="h != 100")
    kept = [i for i in range(N) if i not in (0, 1) and DATA["h"].iloc[i] != 100]
    assert design.row_index.tolist() == kept
    assert (design.n_total, design.n_missing) == (N, 2)
    assert design.index.tolist() == [f"row{i}" for i in kept]
    np.testing.assert_array_equal(design.y, DATA["y"].iloc[kept])


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


@pytest.mark.parametrize("column", ["y", "x", "z", "f", "g", "few", "w", "a b"])
def test_a_missing_value_in_any_variable_drops_the_row(column: str) -> None:
    formula = "y ~ x + log(z) + f + (`a b` | g) + (1 | h:few)"
    data = DATA.astype({column: object}) if column in ("g", "few") else DATA.copy()
    data.iloc[7, data.columns.get_loc(column)] = None
    design = build(formula, data, offset="w")
    assert design.n_missing == 1
    assert design.row_index.tolist() == [i for i in range(N) if i != 7]
    with pytest.raises(DataError, match=r"missing values in .*\(1\)"):
        build(formula, data, offset="w", na_action="raise")


def test_missing_values_elsewhere_do_not_matter() -> None:
    assert build(data=DATA.assign(z=np.nan)).n_missing == 0
    design = build(data=DATA.assign(x=DATA["x"].where(DATA["h"] != 100)), subset="h != 100", na_action="raise")
    assert (len(design.y), design.n_missing) == (32, 0)


def test_undefined_values_of_a_transform_are_missing_and_infinite_ones_refused() -> None:
    assert build("y ~ sqrt(x) + (1 | g)").n_missing == (DATA["x"] < 0).sum()
    with pytest.raises(DataError, match=r"fixed part: log\(q\) \(2 rows\)"):
        build("y ~ log(q) + (1 | g)", DATA.assign(q=np.r_[0.0, 0.0, np.ones(N - 2)]))


def test_na_action_raise_names_columns_and_counts() -> None:
    data = DATA.assign(x=DATA["x"].where(np.arange(N) > 1), y=DATA["y"].where(np.arange(N) > 0))
    with pytest.raises(DataError, match=r"missing values in y \(1\), x \(2\)"):
        build(data=data, na_action="raise")
    with pytest.raises(ModelError, match="na_action must be"):
        build(na_action="omit")


def test_weights_and_offset() -> None:
    design = build("y ~ x + offset(z) + (1 | g)", weights="w", offset=DATA["x"].to_numpy(), subset="h > 4")
    rows = DATA["h"] > 4
    np.testing.assert_array_equal(design.weights, DATA["w"][rows])
    np.testing.assert_array_equal(design.offset, (DATA["z"] + DATA["x"])[rows])


def with_values(column: str, values: dict[int, float]) -> pd.DataFrame:
    data = DATA.copy()
    for row, value in values.items():
        data.iloc[row, data.columns.get_loc(column)] = value
    return data


@pytest.mark.parametrize(
    ("formula", "data", "kwargs", "error", "message"),
    [
        ("y ~ x", DATA, {}, FormulaError, "no random-effect term"),
        ("y ~ X + (1 | g)", DATA, {}, DataError, "no column 'X': did you mean 'x'"),
        ("Y ~ x + (1 | g)", DATA, {}, DataError, "no column 'Y': did you mean 'y'"),
        ("y ~ x + (1 | G)", DATA, {}, DataError, "no column 'G': did you mean 'g'"),
        ("y ~ log(zz) + (1 | g)", DATA, {}, DataError, "no column 'zz': did you mean 'z'"),
        ("y ~ x + offset(zz) + (1 | g)", DATA, {}, DataError, "no column 'zz'"),
        ("cbind(y, x) ~ x + (1 | g)", DATA, {}, FormulaError, "calls cbind"),
        ("y ~ x + (1 | g)", DATA.iloc[:0], {}, DataError, "no rows"),
        ("y ~ x + (1 | g)", with_values("y", {3: np.inf}), {}, DataError, "response y is infinite in 1 rows"),
        ("y ~ x + (1 | g)", with_values("x", {3: np.inf, 4: -np.inf}), {}, DataError, r"fixed part: x \(2 rows\)"),
        ("y ~ (x | g)", with_values("x", {3: np.inf}), {}, DataError, r"term \(x \| g\): x \(1 rows\)"),
        ("y ~ x + (1 | g)", DATA.assign(x=np.nan), {}, DataError, r"no row is complete: missing values in x \(48\)"),
        ("y ~ scale(x) + (1 | g)", DATA.assign(x=np.nan), {}, DataError, "no row is complete"),
        ("y ~ x + (1 | g)", DATA, {"subset": "x > 100"}, DataError, "subset keeps none of the 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"subset": [True]}, DataError, "subset has 1 values, the data have 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"weights": [1.0]}, DataError, "weights has 1 values, the data have 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"offset": [1.0]}, DataError, "offset has 1 values, the data have 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"weights": "-w"}, DataError, "weights are negative in 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"weights": "0 * w"}, DataError, "weights are all zero"),
        ("y ~ x + (1 | g)", with_values("w", {3: np.inf}), {"weights": "w"}, DataError, "infinite in 1 rows"),
        ("y ~ x + (1 | g)", with_values("w", {3: np.inf}), {"offset": "w"}, DataError, "offset is infinite in 1 rows"),
        ("y ~ x + (1 | g)", DATA, {"offset": "g"}, DataError, "offset must be numeric"),
        ("y ~ x + offset(g) + (1 | g)", DATA, {}, DataError, r"offset\(g\) must be numeric"),
        ("f ~ x + (1 | g)", DATA, {}, DataError, "response f is categorical, not numeric"),
        ("y ~ x + (1 | g)", DATA, {"na_action": "na.omit"}, ModelError, "R's na.omit"),
        ("y ~ x + (1 | g)", DATA, {"contrasts": "sum"}, DataError, "mapping of factors to contrasts"),
        ("y ~ I(x**k) + (1 | g)", DATA, {}, DataError, r"no column 'k'.*env=\{'k': k\}"),
        ("y ~ bump(x) + (1 | g)", DATA, {}, FormulaError, r"calls bump.*env=\{'bump': bump\}"),
        ("poly(y, 2) ~ x + (1 | g)", DATA, {}, DataError, "has 2 columns"),
        ("y ~ x + (1 | g)", DATA.assign(y=2.5), {}, ModelError, r"constant \(2.5 in all 48 rows\)"),
        ("y ~ x + (1 | g)", DATA, {"subset": "g == 'g1'"}, ModelError, "more than one level: g has only 'g1'"),
        ("y ~ x + (1 | i)", DATA.assign(i=range(N)), {}, ModelError, "i has 48 levels for 48 rows"),
        ("y ~ (x | i)", DATA.assign(i=np.arange(N) // 2), {}, ModelError, r"\(Intercept \+ x \| i\) has 48 random"),
        ("y ~ (0 | g)", DATA, {}, ModelError, "has no columns"),
        ("y ~ q + (1 | g)", DATA.assign(q="only"), {}, DataError, "factor q has only one level"),
        ("y ~ x + (1 | g)", DATA, {"contrasts": {"g": "sum"}}, DataError, "contrasts are given for 'g'"),
    ],
)
def test_errors(formula: str, data: Any, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(formula, data, **kwargs)


def test_missing_weights_are_missing_rows_and_weights_of_zero_leave_rows_out() -> None:
    data = with_values("w", {3: np.nan, 4: 0.0, 5: 0.0})
    design = build(data=data, weights="w")
    assert design.row_index.tolist() == [0, 1, 2, *range(6, N)]
    assert (design.n_missing, design.n_zero_weight) == (1, 2)
    assert design.notes == ("2 rows have weight zero and are left out",)
    few = build(data=data, weights="w", subset=~np.isin(np.arange(N), [3, 4]))
    assert (len(few.weights), few.n_missing, few.n_zero_weight) == (N - 3, 0, 1)
    with pytest.raises(DataError, match=r"the weights \(1\)"):
        build(data=data, weights="w", na_action="raise")


def test_true_and_false_are_a_response_of_ones_and_zeros() -> None:
    design = build("y > 0 ~ x + (1 | g)")
    np.testing.assert_array_equal(design.y, DATA["y"] > 0)
    assert design.notes == ("the response y > 0 is true or false: true counts as 1, false as 0",)


def test_levels_are_as_many_as_rows_only_with_weights_that_differ() -> None:
    data = DATA.assign(i=range(N))
    for formula in ("y ~ x + (1 | i)", "y ~ x + (x | i)"):
        with pytest.raises(ModelError, match="check_levels=False"):
            build(formula, data, weights="w")
        assert len(build(formula, data, weights="w", check_levels=False).random[0].levels) == N
        with pytest.raises(ModelError, match="48 levels for 48 rows"):
            build(formula, data, check_levels=False)


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


def test_exclude_keeps_a_place_for_every_row_of_the_table() -> None:
    data = with_values("x", {3: np.nan})
    design = build(data=data, na_action="exclude", subset="few == 'p'")
    series = design.by_row(design.y)
    assert series.index.equals(DATA.index)
    np.testing.assert_array_equal(series.isna(), (DATA["few"] != "p") | data["x"].isna())
    assert build(data=data.to_dict("list"), na_action="exclude").by_row(np.arange(47.0)).index.tolist() == list(
        range(N)
    )
    assert len(build(data=data).by_row(np.arange(47.0))) == 47


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


FULL = "y ~ poly(x, 2) * f + scale(z) + offset(w) + (log(z) | g) + (0 + f | h:few)"


def test_rebuild_of_the_models_own_rows() -> None:
    design = pickle.loads(pickle.dumps(build(FULL, offset="x / 2")))
    new = design.rebuild(DATA.drop(columns="y"))
    np.testing.assert_allclose(new.X, design.X, rtol=1e-13)
    np.testing.assert_array_equal(new.offset, design.offset)
    assert new.index.equals(DATA.index)
    assert new.rows is None
    for part, term in zip(new.random, design.random, strict=True):
        np.testing.assert_array_equal(part.codes, term.codes)
        np.testing.assert_array_equal(part.z, term.z)
        assert part.codes.dtype == np.int64


def test_rebuild_of_a_few_rows_keeps_what_was_learnt() -> None:
    design = build(FULL)
    rows = [5, 40]
    new = design.rebuild(DATA.iloc[rows].assign(f="hi"))
    expected = build(FULL).rebuild(DATA.assign(f=np.repeat("hi", N)))
    np.testing.assert_allclose(new.X, expected.X[rows], rtol=1e-13)
    for k, term in enumerate(design.random):
        np.testing.assert_array_equal(new.random[k].codes, term.codes[rows])


def test_rebuild_needs_only_the_columns_of_the_parts_asked_for() -> None:
    design = build("y ~ x + (z | g) + (1 | h)")
    fixed = design.rebuild({"x": [1.0, 2.0]}, random=False)
    np.testing.assert_array_equal(fixed.X, [[1, 1], [1, 2]])
    assert fixed.random == (None, None)
    assert fixed.index.tolist() == [0, 1]
    second = design.rebuild({"h": ["100", "4"]}, fixed=False, random=[1])
    assert second.X is None
    assert second.random[0] is None
    assert second.random[1].codes.tolist() == [2, 0]
    with pytest.raises(DataError, match=r"no column 'g'.*re_form=\"none\""):
        design.rebuild({"x": [1.0]}, random=[0])
    with pytest.raises(DataError, match="no column 'z'"):
        design.rebuild({"x": [1.0], "g": ["g1"]}, random=[0])


def test_new_levels() -> None:
    design = build("y ~ x + (1 | g) + (1 | few:h)")
    new = DATA.iloc[:3].assign(g=["g1", "other", "g0"], h=[30, 30, 7])
    with pytest.raises(DataError, match="level of g that the model was not fitted to: 'other'"):
        design.rebuild(new)
    with pytest.raises(DataError, match=r"level of few:h .*: 'p:7'"):
        design.rebuild(new.assign(g="g1"))
    codes = {
        term.group: part.codes.tolist()
        for term, part in zip(design.random, design.rebuild(new, allow_new_levels=True).random, strict=True)
    }
    assert codes == {"g": [1, -1, 0], "few:h": [1, 4, -1]}


@pytest.mark.parametrize(
    ("formula", "new", "message"),
    [
        ("y ~ f + (1 | g)", {"f": ["lo", "mid"]}, "f has levels in the new data .*: 'mid'"),
        ("y ~ C(h) + (1 | g)", {"h": [30, 31]}, r"C\(h\) has levels in the new data .*: '31'"),
        ("y ~ x + (1 | g)", {"x": [1.0, np.inf]}, r"fixed part of the new data: x \(1 rows\)"),
        ("y ~ x + (1 | g)", {"x": ["1", "2"]}, "x is numeric in the model but not in the new data"),
        ("y ~ f + (1 | g)", {"f": [1, 2]}, "f is categorical in the model but numeric"),
        ("y ~ x + offset(z) + (1 | g)", {"z": [np.inf, 1.0]}, "offset is infinite in 1 rows"),
    ],
)
def test_new_data_that_do_not_fit(formula: str, new: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(formula).rebuild(DATA.iloc[:2].assign(**new))


@pytest.mark.parametrize("column", ["x", "f", "z", "g", "h", "w"])
def test_rows_of_new_data_with_missing_values_are_left_out(column: str) -> None:
    design = build("y ~ scale(x) + f + offset(w) + (z | g) + (1 | few:h)")
    new = DATA.iloc[:4].astype({"h": object})
    new.iloc[2, new.columns.get_loc(column)] = None
    found = design.rebuild(new)
    whole = design.rebuild(DATA.iloc[:4])
    assert found.rows.tolist() == [0, 1, 3]
    np.testing.assert_allclose(found.X, whole.X[[0, 1, 3]])
    np.testing.assert_allclose(found.offset, whole.offset[[0, 1, 3]])
    for mine, theirs in zip(found.random, whole.random, strict=True):
        np.testing.assert_array_equal(mine.codes, theirs.codes[[0, 1, 3]])
    np.testing.assert_array_equal(found.by_row(np.array([1.0, 2.0, 3.0])), [1, 2, np.nan, 3])
    allowed = design.rebuild(new, allow_new_levels=True)
    if column in ("g", "h"):  # a missing level counts as a new one
        assert allowed.rows is None
        assert allowed.random["gh".index(column)].codes[2] == -1
    else:
        assert allowed.rows.tolist() == [0, 1, 3]


def test_an_offset_given_as_an_array_cannot_be_rebuilt() -> None:
    design = build(offset=np.arange(N))
    with pytest.raises(DataError, match="offset was an array"):
        design.rebuild(DATA)
    assert design.rebuild(DATA, fixed=False).offset is None


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
