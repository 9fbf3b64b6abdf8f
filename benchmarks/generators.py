"""Seeded tables of the problems that no shipped data set gives: large linear ones, and generalised ones of all sizes.

Every generator takes its sizes and a seed and returns a pandas frame. Identifiers are plain integers, as a file would
hold them: coding them is part of what is timed.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = [
    "bacteria",
    "children",
    "contraception",
    "crossed",
    "crossed_logistic",
    "epilepsy",
    "ratings",
    "schools",
    "slopes",
    "trials",
    "wide",
]

Array = NDArray[np.float64]
Codes = NDArray[np.int32]


def heavy_tail(rng: np.random.Generator, n: int, shape: float, floor: float) -> Array:
    """(n,) weights of mean about one: ``floor`` plus a Weibull tail, the heavier the smaller its ``shape``."""
    return floor + (1.0 - floor) * rng.weibull(shape, n) / math.gamma(1.0 + 1.0 / shape)


def distinct_pairs(
    rng: np.random.Generator, n_rows: int, row_weights: Array, column_weights: Array
) -> tuple[Codes, Codes]:
    """``n_rows`` distinct (row, column) pairs drawn by weight, in random order; every row and column occurs."""
    n, m = len(row_weights), len(column_weights)
    if not max(n, m) <= n_rows <= n * m // 2:
        raise ValueError(f"{n_rows} distinct pairs do not fit {n} x {m} levels that must all occur")
    row_cdf, column_cdf = (np.cumsum(w) / w.sum() for w in (row_weights, column_weights))

    def draw(cdf: Array, k: int) -> NDArray[np.int64]:
        return np.minimum(np.searchsorted(cdf, rng.random(k)), len(cdf) - 1)

    first = np.concatenate([np.arange(n) * m + draw(column_cdf, n), draw(row_cdf, m) * m + np.arange(m)])
    required = np.unique(first)
    if len(required) > n_rows:  # few rows: pair off the two sets of levels instead
        k = np.arange(max(n, m))
        required = np.unique((k % n) * m + k % m)
    keys = required
    while len(keys) < n_rows:
        missing = n_rows - len(keys)
        fresh = draw(row_cdf, missing + missing // 4 + 16) * m + draw(column_cdf, missing + missing // 4 + 16)
        keys = np.union1d(keys, fresh)
    optional = np.setdiff1d(keys, required, assume_unique=True)
    keys = np.concatenate([required, rng.permutation(optional)[: n_rows - len(required)]])
    rng.shuffle(keys)
    return (keys // m).astype(np.int32), (keys % m).astype(np.int32)


def ratings(n_users: int, n_items: int, n_rows: int, *, item_shape: float = 0.65, seed: int = 1) -> pd.DataFrame:
    """Ratings of items by users, each pair at most once, with the degrees of the MovieLens tables.

    Parameters
    ----------
    n_users, n_items, n_rows : int
    item_shape : float
        Shape of the Weibull distribution of popularity. 0.65 has MovieLens-1M's ratio of median to mean (0.45), 0.42
        MovieLens-10M's (0.15).
    seed : int

    Returns
    -------
    DataFrame
        ``rating`` (float), ``user``, ``item`` (integer identifiers). Users' degrees have a floor at about an eighth of
        their mean, as MovieLens has at 20 ratings.
    """
    rng = np.random.default_rng(seed)
    user, item = distinct_pairs(
        rng, n_rows, heavy_tail(rng, n_users, 0.7, 0.13), heavy_tail(rng, n_items, item_shape, 0.002)
    )
    rating = rng.normal(3.6, 0.9, n_rows)
    rating += rng.normal(0.0, 0.42, n_users)[user]
    rating += rng.normal(0.0, 0.55, n_items)[item]
    return pd.DataFrame({"rating": rating, "user": user, "item": item})


def crossed(n_rows: int, *levels: int, seed: int = 2) -> pd.DataFrame:
    """Balanced-at-random crossed factors ``g0, g1, ...`` with a covariate ``x`` and a response ``y``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n_rows)
    y = 1.0 + 0.5 * x + rng.normal(size=n_rows)
    columns: dict[str, NDArray[np.generic]] = {}
    for k, q in enumerate(levels):
        codes = rng.permutation(np.concatenate([np.arange(q), rng.integers(0, q, n_rows - q)])).astype(np.int32)
        y += rng.normal(0.0, 0.6, q)[codes]
        columns[f"g{k}"] = codes
    return pd.DataFrame({"y": y, "x": x, **columns})


def schools(
    n_students: int, *, per_class: int = 25, per_school: int = 12, per_district: int = 20, seed: int = 3
) -> pd.DataFrame:
    """Students in classes in schools in districts; a school is numbered within its district, a class within its school.

    Returns
    -------
    DataFrame
        ``score``, ``ses`` (float), ``district``, ``school``, ``class_`` (integers, shuffled rows).
    """
    rng = np.random.default_rng(seed)
    n_classes = -(-n_students // per_class)
    n_schools, n_districts = -(-n_classes // per_school), -(-n_classes // (per_school * per_district))
    student = rng.permutation(n_students)
    klass = (student * n_classes // n_students).astype(np.int32)
    school, district = klass // per_school, klass // (per_school * per_district)
    ses = rng.normal(size=n_students) + rng.normal(0.0, 0.4, n_schools)[school]
    score = 500.0 + 12.0 * ses + rng.normal(0.0, 60.0, n_students)
    for codes, q, sd in ((klass, n_classes, 18.0), (school, n_schools, 22.0), (district, n_districts, 14.0)):
        score += rng.normal(0.0, sd, q)[codes]
    return pd.DataFrame(
        {
            "score": score,
            "ses": ses,
            "district": district,
            "school": school % per_district,
            "class_": klass % per_school,
        }
    )


def trials(
    n_varieties: int, n_sites: int, n_years: int, *, n_blocks: int = 3, tested: float = 0.25, seed: int = 4
) -> pd.DataFrame:
    """Field trials: each site and year tests a share of the varieties, once in each block.

    Returns
    -------
    DataFrame
        ``yield_``, ``rain`` (float), ``variety``, ``site``, ``year``, ``block`` (integers; blocks numbered in a trial).
    """
    rng = np.random.default_rng(seed)
    trial = np.arange(n_sites * n_years)
    entries = [rng.permutation(n_varieties)[: max(2, round(tested * n_varieties))] for _ in trial]
    entries[0] = np.arange(n_varieties)  # every variety occurs
    variety = np.concatenate([np.repeat(e, n_blocks) for e in entries])
    where = np.repeat(trial, [n_blocks * len(e) for e in entries])
    site, year = where // n_years, where % n_years
    block = np.concatenate([np.tile(np.arange(n_blocks), len(e)) for e in entries])
    n = len(variety)
    rain = rng.normal(size=len(trial))[where] + 0.3 * rng.normal(size=n)
    out = 7.0 + 0.4 * rain + rng.normal(0.0, 0.7, n)
    for keys, sd in (
        ((variety,), 0.6),
        ((site,), 0.9),
        ((year,), 0.5),
        ((site, year), 0.6),
        ((variety, site), 0.3),
        ((variety, year), 0.3),
        ((variety, site, year), 0.4),
        ((site, year, block), 0.3),
    ):
        _, codes = np.unique(np.column_stack(keys), axis=0, return_inverse=True)
        out += rng.normal(0.0, sd, codes.max() + 1)[codes.ravel()]
    columns = {"variety": variety, "site": site, "year": year, "block": block}
    return pd.DataFrame({"yield_": out, "rain": rain, **{k: v.astype(np.int32) for k, v in columns.items()}})


def slopes(n_groups: int, per_group: int, *, seed: int = 5) -> pd.DataFrame:
    """Groups with correlated intercepts and slopes: ``y``, ``x``, ``g``."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(n_groups, dtype=np.int32), per_group)
    x = np.tile(np.linspace(0.0, 9.0, per_group), n_groups)
    factor = np.array([[1.0, 0.0], [0.1, 0.25]])
    b = rng.normal(size=(n_groups, 2)) @ factor.T
    y = 2.5 + 0.1 * x + b[g, 0] + b[g, 1] * x + rng.normal(size=len(g))
    return pd.DataFrame({"y": y, "x": x, "g": g})


def wide(n_rows: int, n_columns: int, n_groups: int, *, seed: int = 6) -> pd.DataFrame:
    """A random intercept beside many covariates: ``y``, ``g``, ``x0`` ... ."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, n_columns))
    g = rng.permutation(np.arange(n_rows, dtype=np.int32) % n_groups)
    y = X @ rng.normal(0.0, 0.2, n_columns) + rng.normal(0.0, 0.7, n_groups)[g] + rng.normal(size=n_rows)
    return pd.DataFrame({"y": y, "g": g, **{f"x{j}": X[:, j] for j in range(n_columns)}})


def logistic(eta: Array, rng: np.random.Generator) -> NDArray[np.int32]:
    """Draws of 0 and 1 with log-odds ``eta``."""
    return (rng.random(len(eta)) < 1.0 / (1.0 + np.exp(-eta))).astype(np.int32)


def crossed_logistic(n_rows: int, n_subjects: int, n_items: int, *, seed: int = 7) -> pd.DataFrame:
    """Binary answers ``y`` of subjects to items drawn at random, all of which occur, with a covariate ``x``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n_rows)
    eta = -0.5 + 0.6 * x
    columns: dict[str, NDArray[np.generic]] = {}
    for name, q, sd in (("subject", n_subjects, 1.0), ("item", n_items, 0.7)):
        codes = rng.permutation(np.concatenate([np.arange(q), rng.integers(0, q, n_rows - q)])).astype(np.int32)
        eta += rng.normal(0.0, sd, q)[codes]
        columns[name] = codes
    return pd.DataFrame({"y": logistic(eta, rng), "x": x, **columns})


def epilepsy(n_patients: int, *, seed: int = 8) -> pd.DataFrame:
    """Seizures in four periods of patients of a trial, the shape of Thall and Vail's (1990) data: counts.

    Returns
    -------
    DataFrame
        ``seizures`` (integer), ``treated``, ``last`` (0 or 1), ``base``, ``age`` (logarithms, centred), ``patient``.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients, dtype=np.int32), 4)
    treated = (np.arange(n_patients) % 2).astype(float)[patient]
    base, age = (rng.normal(0.0, sd, n_patients)[patient] for sd in (0.75, 0.22))
    last = np.tile([0.0, 0.0, 0.0, 1.0], n_patients)
    eta = 1.8 + 0.9 * base - 0.3 * treated + 0.3 * base * treated + 0.5 * age - 0.15 * last
    eta += rng.normal(0.0, 0.5, n_patients)[patient]
    columns = {"treated": treated, "base": base, "age": age, "last": last, "patient": patient}
    return pd.DataFrame({"seizures": rng.poisson(np.exp(eta)).astype(np.int32), **columns})


def bacteria(n_children: int, *, seed: int = 9) -> pd.DataFrame:
    """Presence of a germ in children seen up to five times under three treatments: few binary rows a level.

    Returns
    -------
    DataFrame
        ``present`` (0 or 1), ``treatment`` (factor of three levels), ``late`` (0 or 1), ``child``.
    """
    rng = np.random.default_rng(seed)
    child = np.repeat(np.arange(n_children, dtype=np.int32), 5)
    late = np.tile([0.0, 0.0, 1.0, 1.0, 1.0], n_children)
    kept = (rng.random(len(child)) < 0.88) | (np.arange(len(child)) % 5 == 0)
    child, late = child[kept], late[kept]
    arm = rng.permutation(np.arange(n_children) % 3)[child]
    eta = 3.0 + np.array([0.0, -1.2, -0.8])[arm] - 1.3 * late + rng.normal(0.0, 1.2, n_children)[child]
    treatment = pd.Categorical.from_codes(arm, categories=["placebo", "drug", "drug+"])
    return pd.DataFrame({"present": logistic(eta, rng), "treatment": treatment, "late": late, "child": child})


def contraception(n_women: int, n_districts: int, *, seed: int = 10) -> pd.DataFrame:
    """Use of contraception by women of districts of very unequal size, town and country differing by district.

    Returns
    -------
    DataFrame
        ``use``, ``urban`` (0 or 1), ``age`` (decades from the mean), ``age2`` (its square), ``children`` (factor of
        four levels), ``district``.
    """
    rng = np.random.default_rng(seed)
    share = heavy_tail(rng, n_districts, 1.0, 0.2)
    drawn = rng.choice(n_districts, n_women - n_districts, p=share / share.sum())
    district = np.concatenate([np.arange(n_districts), drawn]).astype(np.int32)
    urban = (rng.random(n_women) < 0.3).astype(float)
    age = rng.uniform(-1.4, 2.0, n_women)
    children = np.clip(np.floor(1.4 + 0.9 * age + rng.normal(0.0, 1.0, n_women)), 0, 3).astype(int)
    b = rng.normal(size=(n_districts, 2)) @ np.array([[0.6, 0.0], [-0.55, 0.45]]).T
    eta = -1.0 + 0.8 * urban - 0.45 * age**2 + np.array([0.0, 0.8, 0.9, 0.9])[children]
    eta += b[district, 0] + b[district, 1] * urban
    levels = pd.Categorical.from_codes(children, categories=["0", "1", "2", "3+"])
    columns = {"urban": urban, "age": age, "age2": age**2, "children": levels, "district": district}
    return pd.DataFrame({"use": logistic(eta, rng), **columns})


def children(n_mothers: int, n_communities: int, *, seed: int = 11) -> pd.DataFrame:
    """Immunisation of one to three children of a mother, whose family matters far more than the community it lives in.

    Returns
    -------
    DataFrame
        ``immunised`` (0 or 1), ``older`` (0 or 1), ``rural`` (0 or 1, a community's), ``education`` (standardised,
        the mother's), ``mother``, ``community``.
    """
    rng = np.random.default_rng(seed)
    mother = np.repeat(np.arange(n_mothers), rng.choice([1, 2, 3], n_mothers, p=[0.68, 0.29, 0.03])).astype(np.int32)
    home = np.concatenate([np.arange(n_communities), rng.integers(0, n_communities, n_mothers - n_communities)])
    community = home[mother].astype(np.int32)
    rural = (rng.random(n_communities) < 0.7).astype(float)[community]
    education = rng.normal(size=n_mothers)[mother]
    older = (rng.random(len(mother)) < 0.75).astype(float)
    eta = -0.6 + 1.7 * older - 0.9 * rural + 0.4 * education
    eta += 2.3 * rng.normal(size=n_mothers)[mother] + rng.normal(size=n_communities)[community]
    columns = {"older": older, "rural": rural, "education": education, "mother": mother, "community": community}
    return pd.DataFrame({"immunised": logistic(eta, rng), **columns})
