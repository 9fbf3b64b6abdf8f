"""lme4's answers (tests/golden/*.json) and the small models among them as plain arrays.

A golden file holds one model fitted by lme4 1.1-31 with its optimiser's tolerance at 1e-11: formula, criterion, beta,
se, vcov, theta, sigma, the variance table, conditional modes and deviations, and inference where there is any. The
design matrices below are written out by hand, so that the formula layer is not needed to check the core.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from problems import Problem, ProblemTerm

Array = NDArray[Any]
FOLDER = Path(__file__).parent / "golden"

__all__ = ["SMALL", "golden", "golden_problem"]

# every golden model but InstEval's, which are too large for dense algebra
SMALL = sorted(
    path.stem
    for path in FOLDER.glob("*.json")
    if path.stem != "sleepstudy_w" and not path.stem.startswith("insteval") and not path.stem.endswith("_nlme")
)


def golden(name: str) -> dict[str, Any]:
    """The figures of one golden file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def table(name: str) -> dict[str, Array]:
    """Columns of a shipped data set; sleepstudy_w is sleepstudy with a weight and an offset."""
    from fastlmm_core.datasets import load_dataset

    frame = load_dataset("sleepstudy" if name == "sleepstudy_w" else name)
    columns = {column: np.asarray(frame[column]) for column in frame.columns}
    if name == "sleepstudy_w":
        columns |= {key: np.array(value) for key, value in golden("sleepstudy_w").items()}
    return columns


def factor(*columns: Array) -> tuple[Array, Array]:
    """Codes (n,) and labels (q,) of a factor or of an interaction of factors, "a:b"."""
    labels = np.array([":".join(str(v) for v in row) for row in zip(*columns, strict=True)])
    levels, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.int32), levels


def dummies(column: Array, levels: list[str]) -> Array:
    """(n, len(levels) - 1): treatment contrasts against the first level."""
    return np.column_stack([np.array([str(v) for v in column]) == level for level in levels[1:]]).astype(float)


def ordered(column: Array, levels: list[str]) -> Array:
    """(n, len(levels) - 1): R's polynomial contrasts of an ordered factor, orthonormal over the levels."""
    place = np.arange(len(levels), dtype=float)
    q, r = np.linalg.qr(np.vander(place - place.mean(), increasing=True))
    contrasts = (q * np.sign(np.diag(r)))[:, 1:]
    return contrasts[[levels.index(str(v)) for v in column]]


def poly2(x: Array) -> Array:
    """(n, 2): R's `poly(x, 2)`, orthonormal, positive along x and its square."""
    q = np.linalg.qr(np.vander(x - x.mean(), 3, increasing=True))[0][:, 1:]
    return q * np.sign([q[:, 0] @ x, q[:, 1] @ (x - x.mean()) ** 2])


def golden_problem(name: str) -> tuple[Problem, list[Array], dict[str, Any]]:
    """The model as arrays, the labels of each term's levels, and lme4's figures."""
    figures = golden(name)
    data = table(figures["data"])
    if name == "sleepstudy_subset":
        keep = data["Days"] >= 2
        data = {key: value[keep] for key, value in data.items()}
    weights = data[figures["arguments"]["weights"]] if "weights" in figures["arguments"] else None
    offset = data[figures["arguments"]["offset"]] if "offset" in figures["arguments"] else None

    terms: list[tuple[tuple[Array, Array], Array | None, str]]
    if name.startswith("sleepstudy"):
        y, days = data["Reaction"].astype(float), data["Days"].astype(float)
        one, subject = np.ones(len(y)), factor(data["Subject"])
        X = np.column_stack([one, days])
        line = np.column_stack([one, days])
        if name == "sleepstudy_poly":
            y, X = np.log(y), np.column_stack([one, poly2(days)])
            terms = [(subject, None, "us")]
        elif name in ("sleepstudy_intercept", "sleepstudy_offset"):
            terms = [(subject, None, "us")]
        elif name == "sleepstudy_slope_only":
            terms = [(subject, days[:, None], "us")]
        elif name == "sleepstudy_zerocorr":
            terms = [(subject, None, "us"), (subject, days[:, None], "us")]
        else:
            terms = [(subject, line, "us")]
    elif name.startswith("cake"):
        y = data["angle"].astype(float)
        one, recipe = np.ones(len(y)), dummies(data["recipe"], figures["columns"]["recipe"]["levels"])
        inner = factor(data["recipe"], data["replicate"])
        if name == "cake_temp":
            X = np.column_stack([one, recipe, data["temp"].astype(float)])
            terms = [(inner, None, "us"), (factor(data["replicate"]), None, "us")]
        else:
            temperature = dummies(data["temperature"], figures["columns"]["temperature"]["levels"])
            both = [recipe[:, i] * temperature[:, j] for j in range(5) for i in range(2)]
            X = np.column_stack([one, recipe, temperature, *both])
            terms = [(inner, None, "us")]
    else:
        response, groups = {
            "Dyestuff": ("Yield", [("Batch",)]),
            "Dyestuff2": ("Yield", [("Batch",)]),
            "Penicillin": ("diameter", [("plate",), ("sample",)]),
            "Pastes": ("strength", [("cask", "batch") if name == "pastes_nested" else ("sample",), ("batch",)]),
        }[figures["data"]]
        y = data[response].astype(float)
        X = np.ones((len(y), 1))
        terms = [(factor(*(data[g] for g in group)), None, "us") for group in groups]

    made = tuple(ProblemTerm(codes, z, cov) for (codes, _), z, cov in terms)
    return Problem(y, X, made, weights, offset, name), [labels for (_, labels), _, _ in terms], figures
