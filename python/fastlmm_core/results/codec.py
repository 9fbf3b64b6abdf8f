"""What a saved fit is made of, as JSON and plain arrays: known classes by name; reading runs nothing of the file's."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from fastlmm_core.core import Control, FitLog
from fastlmm_core.core.estimability import NullSpace
from fastlmm_core.core.glmm.iterative.fitted import GlmmMonteCarlo
from fastlmm_core.core.iterative import MonteCarlo
from fastlmm_core.core.structures.relationship import KnownCovariance, Relationship
from fastlmm_core.errors import ModelError, SavedFormatError
from fastlmm_core.formula.design import Design, RandomDesign
from fastlmm_core.formula.evaluate import Context, Learnt
from fastlmm_core.formula.fixed import MatrixSpec, _FactorCoding
from fastlmm_core.formula.grid_info import ColumnInfo, GridInfo, GridSource
from fastlmm_core.formula.levels import Interaction, Levels
from fastlmm_core.formula.parse import ParsedFormula, RandomTerm
from fastlmm_core.formula.residual import Dispersion, ParsedResidual, ResidualDesign, power
from fastlmm_core.formula.sparse import SparseDesign
from fastlmm_core.formula.structures import TermStructure
from fastlmm_core.formula.terms import Terms
from fastlmm_core.inference.information import VarianceInformation

__all__ = ["Reader", "Writer"]

CLASSES: dict[str, type] = {
    kind.__name__.lstrip("_"): kind
    for kind in (
        *(Design, RandomDesign, ParsedFormula, RandomTerm, TermStructure, Terms, MatrixSpec, _FactorCoding, Learnt),
        *(Levels, Interaction, GridSource, GridInfo, ColumnInfo, Context, Control, NullSpace, FitLog),
        *(ResidualDesign, ParsedResidual, Dispersion, SparseDesign, Relationship, KnownCovariance),
        *(VarianceInformation, MonteCarlo, GlmmMonteCarlo),
    )
}
"""What a file may name; an instance is its attributes, and none of these runs code when they are set."""

OWN = {"power": power}
"""Functions of this package that a formula may call, beside those that every formula finds."""

NAMES = {kind: name for name, kind in CLASSES.items()}

MODULES = frozenset({"numpy", "math", "scipy.special", "scipy.stats", "pandas"})
"""Modules that a formula's calls may be found in again; another is for the reader to import."""


class Writer:
    """Values to JSON; arrays are put aside, by name, in `arrays`."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, value: Any, where: str = "the fit") -> Any:
        """The value as JSON; ModelError where no file can hold it."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if isinstance(value, np.generic) and not isinstance(value, np.void):
            return {"scalar": self._array(np.asarray(value), where)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            return {type(value).__name__: [self(v, where) for v in value]}
        if isinstance(value, (frozenset, set)):
            return {"frozenset": [self(v, where) for v in sorted(value)]}
        if isinstance(value, slice):
            return {"slice": [value.start, value.stop, value.step]}
        return self._object(value, where)

    def _object(self, value: Any, where: str) -> Any:
        if isinstance(value, Context):
            return {"Context": self._context(value)}
        if type(value) in NAMES:
            name = NAMES[type(value)]
            return {"class": name, "is": {k: self(v, f"{where}: {k}") for k, v in self._attributes(value).items()}}
        if sp.issparse(value):
            held = sp.csc_array(value)
            return {"sparse": [self(part, where) for part in (held.data, held.indices, held.indptr)], "q": held.shape}
        if isinstance(value, dict):
            return {"dict": [[self(k, where), self(v, f"{where}: {k}")] for k, v in value.items()]}
        if isinstance(value, pd.Timestamp):
            return {"Timestamp": value.isoformat()}
        if isinstance(value, timedelta):
            return {"Timedelta": pd.Timedelta(value).isoformat()}
        if isinstance(value, datetime):
            return {"datetime": value.isoformat()}
        if isinstance(value, date):
            return {"date": value.isoformat()}
        if isinstance(value, pd.Series):
            return {"Series": [self(value.to_numpy(), where), self(value.index, where)]}
        if isinstance(value, pd.Index):
            return {"Index": self(value.to_numpy(), where), "name": self(value.name, where)}
        raise ModelError(f"the fit cannot be saved in a file without pickle: {where} is a {type(value).__name__}")

    def _attributes(self, value: Any) -> dict[str, Any]:
        if is_dataclass(value):
            return {f.name: getattr(value, f.name) for f in fields(value)}
        state: dict[str, Any] = value.__getstate__()
        return state

    def _context(self, context: Context) -> list[Any]:
        """Names that the formula used: numbers, arrays and well-known modules; what else there is counts as lost."""
        kept, lost = {}, set(context._lost)
        for name, used in context._used.items():
            try:
                if OWN.get(name) is used:
                    kept[name] = {"own": name}
                elif isinstance(used, ModuleType):
                    kept[name] = {"module": used.__name__}
                    if used.__name__ not in MODULES:
                        lost.add(name)
                else:
                    kept[name] = self(used)
            except ModelError:
                lost.add(name)
        return [{name: value for name, value in kept.items() if name not in lost}, sorted(lost)]

    def _array(self, value: np.ndarray, where: str) -> Any:
        if value.dtype.kind in "biufcMmU":
            return {"array": self._aside(value)}
        flat = list(value.ravel())
        for kind, code in ((str, "U"), (int, "i")):  # a million levels are one array, not a million texts of JSON
            if flat and all(type(v) is kind for v in flat):
                packed = np.array(flat)
                if packed.dtype.kind == code and packed.tolist() == flat:
                    return {"objects": self._aside(packed), "shape": list(value.shape)}
        return {"objects": [self(v, where) for v in flat], "shape": list(value.shape)}

    def _aside(self, value: np.ndarray) -> str:
        name = f"a{len(self.arrays)}"
        self.arrays[name] = np.ascontiguousarray(value).reshape(value.shape)
        return name


class Reader:
    """The values that a `Writer` wrote."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __call__(self, value: Any) -> Any:
        """The value; SavedFormatError where it is none of this format."""
        if not isinstance(value, dict):
            return value
        if "class" in value:
            return self._instance(value["class"], value["is"])
        made = next((make for key, make in self._kinds().items() if key in value), None)
        if made is None:
            raise SavedFormatError(f"the file holds something that this version does not know: {sorted(value)}")
        return made(value)

    def _kinds(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {
            "array": lambda v: self.arrays[v["array"]],
            "objects": self._objects,
            "scalar": lambda v: self(v["scalar"])[()],
            "float": lambda v: float(v["float"]),
            "list": lambda v: [self(x) for x in v["list"]],
            "tuple": lambda v: tuple(self(x) for x in v["tuple"]),
            "frozenset": lambda v: frozenset(self(x) for x in v["frozenset"]),
            "slice": lambda v: slice(*v["slice"]),
            "dict": lambda v: {self(k): self(x) for k, x in v["dict"]},
            "Context": lambda v: self._context(*v["Context"]),
            "Timestamp": lambda v: pd.Timestamp(v["Timestamp"]),
            "Timedelta": lambda v: pd.Timedelta(v["Timedelta"]),
            "datetime": lambda v: datetime.fromisoformat(v["datetime"]),
            "date": lambda v: date.fromisoformat(v["date"]),
            "sparse": lambda v: sp.csc_array(tuple(self(part) for part in v["sparse"]), shape=tuple(v["q"])),
            "Series": lambda v: pd.Series(self(v["Series"][0]), index=self(v["Series"][1])),
            "Index": lambda v: pd.Index(self(v["Index"]), name=self(v["name"])),
        }

    def _instance(self, name: str, attributes: dict[str, Any]) -> Any:
        if name not in CLASSES:
            raise SavedFormatError(f"the file names a class that this version does not know: {name}")
        made: Any = object.__new__(CLASSES[name])
        made.__dict__.update({key: self(value) for key, value in attributes.items()})
        return made

    def _objects(self, value: dict[str, Any]) -> np.ndarray:
        found = value["objects"]
        values = self.arrays[found].tolist() if isinstance(found, str) else [self(v) for v in found]
        out = np.empty(len(values), dtype=object)
        for i, level in enumerate(values):  # not in one assignment, which would take tuples for rows
            out[i] = level
        return out.reshape(value["shape"])

    def _context(self, kept: dict[str, Any], lost: list[str]) -> Context:
        context = Context()
        context._lost = frozenset(lost)
        for name, value in kept.items():
            if isinstance(value, dict) and "own" in value:
                context._used[name] = OWN[value["own"]]
            elif isinstance(value, dict) and "module" in value:
                if value["module"] not in MODULES:
                    raise SavedFormatError(f"the file asks for a module that is not on the list: {value['module']}")
                context._used[name] = importlib.import_module(value["module"])
            else:
                context._used[name] = self(value)
        return context
