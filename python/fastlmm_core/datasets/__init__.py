"""The data sets on which mixed models are taught, compared and timed, ready to fit.

`data/` holds them as plain CSV where they are small; InstEval is an `.npz` of small integers, one array a column,
because reading 73,421 rows of text costs more than fitting a model to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = ["dataset_names", "load_dataset"]

_FOLDER = Path(__file__).with_name("data")


@dataclass(frozen=True)
class _Entry:
    """A data file, its factors, the level order of those that are not simply sorted, and which are ordered factors."""

    file: str
    factors: tuple[str, ...]
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ordered: tuple[str, ...] = ()


_CATALOGUE = {
    "Dyestuff": _Entry("Dyestuff.csv", ("Batch",)),
    "Dyestuff2": _Entry("Dyestuff2.csv", ("Batch",)),
    "InstEval": _Entry(
        "InstEval.npz",
        ("s", "d", "studage", "lectage", "service", "dept"),
        {"dept": ("15", "5", "10", "12", "6", "7", "4", "8", "9", "14", "1", "3", "11", "2")},
        ordered=("studage", "lectage"),
    ),
    "Orthodont": _Entry("Orthodont.csv", ("Subject", "Sex"), {"Sex": ("Male", "Female")}),
    "Pastes": _Entry("Pastes.csv", ("batch", "cask", "sample")),
    "Penicillin": _Entry("Penicillin.csv", ("plate", "sample")),
    "VerbAgg": _Entry(
        "VerbAgg.csv.gz",
        ("Gender", "item", "resp", "id", "btype", "situ", "mode", "r2"),
        {
            "item": tuple(
                # the one small w is in the published data
                "S4wantCurse" if (s, mode, verb) == (4, "Want", "Curse") else f"S{s}{mode}{verb}"
                for mode in ("Want", "Do")
                for s in (1, 2, 3, 4)
                for verb in ("Curse", "Scold", "Shout")
            ),
            "mode": ("want", "do"),
        },
        ordered=("resp",),
    ),
    "cake": _Entry("cake.csv", ("replicate", "recipe", "temperature"), ordered=("temperature",)),
    "cbpp": _Entry("cbpp.csv", ("herd", "period")),
    "fev": _Entry("fev.csv", ("USUBJID", "AVISIT", "ARMCD", "RACE", "SEX"), {"SEX": ("Male", "Female")}),
    "grouseticks": _Entry("grouseticks.csv", ("INDEX", "BROOD", "YEAR", "LOCATION")),
    "sleepstudy": _Entry("sleepstudy.csv", ("Subject",)),
}


def dataset_names() -> tuple[str, ...]:
    """Names that `load_dataset` knows, sorted.

    Examples
    --------
    >>> from fastlmm_core import dataset_names
    >>> "sleepstudy" in dataset_names()
    True
    """
    return tuple(sorted(_CATALOGUE, key=str.casefold))


def load_dataset(name: str) -> pd.DataFrame:
    """One of the field's classic data sets, with lme4's column names and level orders.

    Parameters
    ----------
    name : str
        ``"cake"``
            270 rows; breaking angle (degrees) of chocolate cakes, 3 recipes × 6 oven temperatures × 15 replicates,
            a split-plot design. Cook (1938), *Chocolate cake: I. Optimum baking temperature*, Iowa State College.
        ``"cbpp"``
            56 rows; new serological cases of contagious bovine pleuropneumonia in 15 herds over 4 periods.
            Lesnoff et al. (2004), *Preventive Veterinary Medicine* 64, 27–40.
        ``"Dyestuff"``
            30 rows; yield (grams of standard colour) of 6 batches, 5 preparations each.
            Davies and Goldsmith (1972), *Statistical Methods in Research and Production*, 4th ed.
        ``"Dyestuff2"``
            30 rows of the same layout, made so that the estimated variance between batches is zero.
            Box and Tiao (1973), *Bayesian Inference in Statistical Analysis*.
        ``"fev"``
            537 rows; forced expired volume in one second (per cent of predicted) of 197 patients of two arms at
            four visits, simulated, incomplete. From the R package mmrm of openpharma (Apache License 2.0).
        ``"grouseticks"``
            403 rows; ticks on the heads of red grouse chicks, by brood, location and year, height in metres.
            Elston et al. (2001), *Parasitology* 122, 563–569.
        ``"InstEval"``
            73,421 rows; ratings `y` (1 poor to 5 very good) of 1,128 lecturers `d` by 2,972 students `s`,
            anonymised. `studage` semesters the student has been enrolled, `lectage` semesters since the lecture,
            `service` 1 for a lecture given for another department, `dept` the lecturer's department.
            ETH Zürich, published with the R package lme4.
        ``"Orthodont"``
            108 rows; distance (mm) from the pituitary to the pterygomaxillary fissure of 27 children at ages 8 to 14.
            Potthoff and Roy (1964), *Biometrika* 51, 313–326.
        ``"Pastes"``
            60 rows; strength of a chemical paste, 2 assays on each of 3 casks from 10 batches.
            Davies and Goldsmith (1972).
        ``"Penicillin"``
            144 rows; diameter (mm) of the zone of inhibition, 6 samples of penicillin on each of 24 plates.
            Davies and Goldsmith (1972).
        ``"sleepstudy"``
            180 rows; mean reaction time (ms) of 18 subjects on days 0 to 9 of three hours' sleep a night.
            Belenky et al. (2003), *Journal of Sleep Research* 12, 1–12.
        ``"VerbAgg"``
            7,584 rows; answers of 316 persons to 24 items on verbal aggression.
            Vansteelandt (2000), in De Boeck and Wilson (2004), *Explanatory Item Response Models*.

    Returns
    -------
    pandas.DataFrame
        A fresh frame. Factors are `Categorical` columns of text levels, ordered where lme4's are; the rest numbers.

    Raises
    ------
    DataError
        There is no data set of that name; the message gives the nearest ones.

    Examples
    --------
    >>> from fastlmm_core import load_dataset
    >>> load_dataset("Dyestuff").head(2)
      Batch  Yield
    0     A   1545
    1     A   1440
    """
    entry = _CATALOGUE.get(name)
    if entry is None:
        raise DataError(_unknown(name))
    import pandas as pd

    path = _FOLDER / entry.file
    columns: dict[str, Any]
    if path.suffix == ".npz":
        with np.load(path) as stored:
            columns = {column: stored[column] for column in stored.files}
    else:
        # keep_default_na: "NA" and "None" would be levels here, and nothing is missing
        columns = dict(pd.read_csv(path, dtype=dict.fromkeys(entry.factors, str), keep_default_na=False))
    return pd.DataFrame(
        {
            column: _factor(np.asarray(values), entry.levels.get(column), column in entry.ordered)
            if column in entry.factors
            else np.asarray(values, dtype=np.result_type(values.dtype, np.int64))
            for column, values in columns.items()
        }
    )


def _factor(values: np.ndarray, levels: Sequence[str] | None, ordered: bool) -> pd.Categorical:
    """Code `values` (n,), numbers or text, against `levels`, or else their own: numeric order where all are numbers."""
    import pandas as pd

    found, codes = np.unique(values, return_inverse=True)
    names = [str(level) for level in found]
    if levels is None:
        levels = sorted(names, key=int) if all(map(str.isdecimal, names)) else names
    position = {level: code for code, level in enumerate(levels)}
    recode = np.array([position[level] for level in names])
    return pd.Categorical.from_codes(recode[codes], categories=list(levels), ordered=ordered)


def _unknown(name: str) -> str:
    by_folded = {known.casefold(): known for known in _CATALOGUE}
    near = [by_folded[match] for match in get_close_matches(str(name).casefold(), by_folded)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(dataset_names())}."
    return f"no data set is called {name!r}; {hint}"
