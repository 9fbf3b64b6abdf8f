"""Fits in files: a zip archive of one JSON text and plain arrays, with the number of its format."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from fastlmm_core.core.estimability import NullSpace
from fastlmm_core.core.estimates import CoreFit, FitLog
from fastlmm_core.core.model import Model
from fastlmm_core.core.saved import read_state, saved_state
from fastlmm_core.errors import DataError, ModelError, NotSavedError, NumericalError, SavedFormatError, StreamedError
from fastlmm_core.fitting import predict, ranef, var_corr
from fastlmm_core.fitting.fit import fit_design, wrap
from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.models import is_structured, model_of
from fastlmm_core.fitting.options import FitOptions
from fastlmm_core.fitting.spelling import explained
from fastlmm_core.fitting.streaming import StreamedDesign
from fastlmm_core.inference.coef_table import coef_table
from fastlmm_core.inference.ddf import method_name
from fastlmm_core.inference.table import Table, table
from fastlmm_core.results.codec import Reader, Writer
from fastlmm_core.results.glmer_result import GlmerResult
from fastlmm_core.results.result import LmerResult
from fastlmm_core.results.saved_generalised import contents_of, restored
from fastlmm_core.results.structured import StructuredResult

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.fitting.var_corr import VarCorr
    from fastlmm_core.formula import Design

__all__ = ["SavedCore", "SavedResult", "load", "save"]

CONTENTS = "fit.json"

FIGURES = (
    *("theta", "beta", "cov_beta", "sigma", "criterion", "reml", "n", "rank", "is_singular", "b", "L", "log"),
    *("converged", "message"),
)
"""What is kept of the core's fit."""

TABLE = ("estimate", "std_error", "df", "t", "p")


@dataclass(frozen=True, eq=False)
class SavedCore:
    """The figures of a core's fit, under its names, without the arrays of the rows."""

    theta: NDArray[np.float64]
    beta: NDArray[np.float64]
    cov_beta: NDArray[np.float64]
    sigma: float
    criterion: float
    reml: bool
    n: int
    rank: int
    is_singular: bool
    b: tuple[NDArray[np.float64], ...]
    L: tuple[NDArray[np.float64], ...]
    log: FitLog
    converged: bool
    message: str
    conditional: tuple[NDArray[np.float64], ...]
    null_space: NullSpace | None

    @property
    def n_parameters(self) -> int:
        """As of the fit."""
        return len(self.theta)

    @property
    def unidentified(self) -> None:
        """None: fits with variances that the data do not identify are saved with their rows."""
        return

    def cond_var(self) -> tuple[NDArray[np.float64], ...]:
        """As of the fit."""
        return self.conditional

    def estimable(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """As of the fit."""
        if self.null_space is None:
            return np.ones(len(np.atleast_2d(rows)), dtype=bool)
        return self.null_space.estimable(rows)

    @property
    def fitted(self) -> NoReturn:
        """Not kept."""
        raise NotSavedError(WITHOUT_DATA)


WITHOUT_DATA = (
    "a result saved without its data has no rows: pass newdata=, or save the fit with data=True for all that needs them"
)


class SavedResult(FittedModel):
    """A fit as it was saved without its data: its figures, tables, random effects, and predictions for new rows.

    What needs the rows of the fit (other tests, profiles, residuals, pictures) says so in one sentence.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(LmerResult, name):
            raise NotSavedError(f"{name}: {WITHOUT_DATA}")
        return super().__getattr__(name)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return saved_state(dict(self.__dict__))  # with what is kept: there is no other source of it

    def coef_table(self, ddf: str = "satterthwaite") -> Table:
        """The coefficients with Satterthwaite's degrees of freedom, as when the fit was saved."""
        if method_name(ddf) != "satterthwaite":
            raise NotSavedError(f"coef_table(ddf={ddf!r}): {WITHOUT_DATA}")
        columns, notes = self.kept["coef_table"]
        return table(dict(zip(TABLE, columns.T, strict=True)), list(self.design.x_names), notes)

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values of `coef_table`."""
        return self.coef_table()["p"].rename(None)

    def cov_params(self) -> pd.DataFrame:
        """Covariance of `params`."""
        from fastlmm_core.fitting.coefficients import cov_params

        return cov_params(self.design, self.core)

    def var_corr(self) -> VarCorr:
        """Standard deviations and correlations of the random effects."""
        return var_corr.var_corr(self.design, self.core)

    def ranef(self, *, condsd: bool = True) -> pd.DataFrame:
        """Conditional modes in a long table, as `LmerResult.ranef`."""
        return ranef.ranef(self.design, self.core, condsd=condsd)

    @property
    def random_effects(self) -> dict[str, pd.DataFrame]:
        """Conditional modes, one wide table a grouping factor."""
        return ranef.random_effects(self.design, self.core)

    def coef(self) -> dict[str, pd.DataFrame]:
        """Coefficients of each level, as `LmerResult.coef`."""
        return ranef.coef(self.design, self.core)

    def predict(self, newdata: Any = None, *, re_form: str = "all", allow_new_levels: bool = False) -> pd.Series:
        """Predictions for new rows, as `LmerResult.predict`; their intervals need the data."""
        if newdata is None:
            raise NotSavedError(f"predict(): {WITHOUT_DATA}")
        return predict.predict(self.design, self.core, newdata, re_form=re_form, allow_new_levels=allow_new_levels)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the same again."""
        _write(path, {"formula": self.formula, **self.kept["saved"]})


def save(result: LmerResult | GlmerResult, path: str | PathLike[str], *, data: bool) -> None:
    """Write a fit to a file; see `LmerResult.save`."""
    if isinstance(result, GlmerResult):
        if not data:
            raise ModelError("a generalised fit is saved with its rows: save(path, data=True)")
        _write(path, {"formula": result.formula, **contents_of(result)})
        return
    design, core = result.design, result.core
    if isinstance(design, StreamedDesign):
        raise StreamedError("save()")
    if is_structured(design) and not data:
        raise ModelError(
            "a fit with a covariance structure or a known relationship is saved with its rows: save(path, data=True)"
        )
    contents: dict[str, Any] = {"formula": result.formula}
    if data:
        options = result.options
        contents |= {"design": design, "theta": core.parameters, "reml": bool(result.reml)}
        contents |= {"control": options.control, "given": _given(design, options.given)}
        if type(core) is CoreFit and core._rows is None:  # others are fitted once more from where they ended
            contents["ended"] = {"converged": core.converged, "message": core.message, "log": core.log}
    else:
        if core.unidentified is not None:
            raise ModelError("a fit with variances that the data do not identify is saved with data=True only")
        figures = {name: getattr(core, name) for name in FIGURES}
        space = None if core.rank == len(core.beta) else core.cross.conditioning.null_space
        figures |= {"conditional": core.cond_var(), "null_space": space}
        tested = coef_table(result)
        contents |= {
            "design": _without_rows(design),
            "figures": figures,
            "coef_table": (tested[list(TABLE)].to_numpy(), tuple(tested.notes)),
        }
    _write(path, contents)


def _set_up(design: Design, contents: dict[str, Any], options: FitOptions) -> LmerResult:
    """A fit with its rows: at its optimum, without a search where an exact engine can answer there."""
    kind, formula, again = StructuredResult if is_structured(design) else LmerResult, contents["formula"], options
    options = replace(options, start=None)
    if "ended" in contents:
        model, ended = model_of(design, options), contents["ended"]
        if isinstance(model, Model):
            try:
                core = model.at(design.y, contents["theta"])
            except (ModelError, NumericalError):
                pass
            else:
                core = replace(core, theta=contents["theta"], converged=ended["converged"], message=ended["message"])
                core.__dict__["log"] = ended["log"]
                return wrap(kind, design, formula, options, core, {"model": model})
    refitted = fit_design(kind, design, formula, again)
    object.__setattr__(refitted, "options", options)
    return refitted


def _given(design: Design, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the fit; matrices between levels as they were read."""
    out = {name: value for name, value in given.items() if name not in ("precision", "relmat")}
    related = {t.group: t.relationship for t in design.random if t.relationship is not None}
    return {**out, "precision": related} if related else out


def _without_rows(design: Design) -> Design:
    """The coding that a design learnt, and none of its rows."""
    none = np.empty(0)
    return replace(
        design,
        y=none,
        X=np.empty((0, design.X.shape[1])),
        random=tuple(replace(t, codes=np.empty(0, np.int32), z=None) for t in design.random),
        weights=None,
        offset=None,
        row_index=np.empty(0, np.int64),
        index=None,
        table_index=None,
    )


def _write(path: str | PathLike[str], contents: dict[str, Any]) -> None:
    from fastlmm_core import __version__

    if not isinstance(path, (str, os.PathLike)) and not hasattr(path, "write"):
        raise DataError(f"a result is saved to a path or a file that is open for writing, not to {path!r}")
    writer = Writer()
    text = json.dumps(saved_state({"fastlmm_core": __version__, "contents": writer(contents)}), allow_nan=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONTENTS, text)
        for name, array in writer.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError)
"""What reading a file ends in that is another's, or of which bits have changed."""


@explained
def load(path: str | PathLike[str]) -> LmerResult:
    """A fit from a file that `LmerResult.save` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    LmerResult
        Where the file has the data: the model is set up again and evaluated from its optimum (a `GlmerResult`, where
        it was one). Otherwise a
        `SavedResult`, which has the fit's figures and predicts new rows.

    Raises
    ------
    SavedFormatError
        It is no such file, or one of another format.

    Notes
    -----
    Loading runs nothing that the file holds. A formula's calls are Python code, which `predict` evaluates: ask a
    stranger's file for predictions only where you would run a stranger's formula.

    Examples
    --------
    >>> import os, tempfile
    >>> from fastlmm_core import lmer, load, load_dataset
    >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    >>> path = os.path.join(tempfile.mkdtemp(), "sleep.fastlmm")
    >>> fit.save(path)
    >>> load(path).predict({"Days": [10], "Subject": [308]}).round(2).tolist()
    [450.33]
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = json.loads(archive.read(CONTENTS))
            state = read_state(text, "file")
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
        contents = Reader(arrays)(state["contents"])
    except SavedFormatError:
        raise
    except DAMAGED as error:
        raise SavedFormatError(f"{path} is no file that fastlmm_core saved a fit in ({error})") from None
    design = contents["design"]
    if "family" in contents:
        return cast("LmerResult", restored(design, contents))
    if "figures" not in contents:
        options = FitOptions(
            reml=contents["reml"], control=contents["control"], start=contents["theta"], given=contents["given"]
        )
        return _set_up(design, contents, options)
    core = SavedCore(**contents["figures"])
    kept = {"coef_table": contents["coef_table"], "saved": {k: v for k, v in contents.items() if k != "formula"}}
    options = FitOptions(reml=core.reml)
    return cast("LmerResult", SavedResult(design, cast("Any", core), contents["formula"], options, kept))
