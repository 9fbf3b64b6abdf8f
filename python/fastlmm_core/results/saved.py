"""Fits in files: a zip archive of one JSON text and plain arrays, with the number of its format."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastlmm_core.core import CoreFit, Model
from fastlmm_core.core.residuals import CrossedFit, PatternFit
from fastlmm_core.core.saved import read_state, saved_state
from fastlmm_core.core.structures.iterative import IterativeEquationsFit
from fastlmm_core.core.structures.projected import ProjectedFit
from fastlmm_core.errors import DataError, ModelError, NumericalError, SavedFormatError, StreamedError
from fastlmm_core.fitting.fit import fit_design, wrap
from fastlmm_core.fitting.models import is_structured, model_of
from fastlmm_core.fitting.options import FitOptions
from fastlmm_core.fitting.residual import describe
from fastlmm_core.fitting.spelling import explained
from fastlmm_core.fitting.streaming import StreamedDesign
from fastlmm_core.inference.ddf import information_of
from fastlmm_core.inference.same_data import row_prints
from fastlmm_core.results.codec import Reader, Writer
from fastlmm_core.results.glmer_result import GlmerResult
from fastlmm_core.results.result import LmerResult
from fastlmm_core.results.saved_figures import SavedCore, SavedResult, SavedStructuredResult, without_rows
from fastlmm_core.results.saved_generalised import contents_of, figures_of, restored, shown
from fastlmm_core.results.structured import StructuredResult
from fastlmm_core.results.summary import residual_quantiles

if TYPE_CHECKING:
    from os import PathLike

    from fastlmm_core.formula import Design

__all__ = ["load", "save", "write"]

CONTENTS = "fit.json"

FIGURES = (
    *("theta", "beta", "cov_beta", "sigma", "criterion", "reml", "n", "rank", "is_singular", "b", "L", "log"),
    *("converged", "message", "n_parameters"),
)
"""What is kept of the core's fit."""


def save(result: LmerResult | GlmerResult, path: str | PathLike[str], *, data: bool) -> None:
    """Write a fit to a file; see `LmerResult.save`."""
    if isinstance(result, GlmerResult):
        kept = contents_of(result) if data else figures_of(result)
        write(path, {"formula": result.formula, **kept})
        return
    design, core = result.design, result.core
    if isinstance(design, StreamedDesign):
        raise StreamedError("save()")
    contents: dict[str, Any] = {"formula": result.formula}
    if data:
        options = result.options
        # a search that draws probes answers to the bit from where it began, to its error from where it ended
        start = core.began if isinstance(core, IterativeEquationsFit) else core.parameters
        contents |= {"design": design, "theta": start, "reml": bool(result.reml)}
        contents |= {"control": options.control, "given": _given(design, options.given)}
        if type(core) is CoreFit and core._rows is None:  # others are fitted once more from where they ended
            contents["ended"] = {"converged": core.converged, "message": core.message, "log": core.log}
    else:
        if core.unidentified is not None:
            raise ModelError("a fit with variances that the data do not identify is saved with data=True only")
        contents |= _figures(result)
    write(path, contents)


def _figures(result: LmerResult) -> dict[str, Any]:
    """What a file without rows keeps of a fit."""
    design, core = result.design, result.core
    figures = {name: getattr(core, name) for name in FIGURES} | {"monte_carlo": result.monte_carlo}
    space = None
    if core.rank < len(core.beta):
        space = core.model.null_space if isinstance(core, ProjectedFit) else core.cross.conditioning.null_space
    figures |= {"conditional": core.cond_var(), "null_space": space, "information": information_of(core)}
    quantiles = residual_quantiles(result)
    assert quantiles is not None
    kept: dict[str, Any] = {"quantiles": quantiles.to_numpy(), "residual": "", "prints": row_prints(result)}
    if isinstance(result, StructuredResult):
        parameters = result.covariance_parameters()
        within = isinstance(core, PatternFit | CrossedFit)
        cov = result.residual_cov() if within else None
        kept |= {
            "residual": describe(design, core),
            "theta_labels": list(result.theta.index),
            "n_groups": result.n_groups,
            "covariance_parameters": {
                "index": list(parameters.index),
                "columns": list(parameters.columns),
                "values": [parameters[name].to_numpy() for name in parameters],
            },
            "residual_cov": None if cov is None else (list(cov.index), cov.to_numpy()),
        }
    return {"design": without_rows(design), "figures": figures, "kept": kept}


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


def write(path: str | PathLike[str], contents: dict[str, Any]) -> None:
    """Write what a `Writer` can to a file."""
    from fastlmm_core import __version__

    if not isinstance(path, (str, os.PathLike)) and not hasattr(path, "write"):
        raise DataError(f"a result is saved to a path or a file that is open for writing, not to {path!r}")
    writer = Writer()
    text = json.dumps(saved_state({"fastlmm_core": __version__, "contents": writer(contents)}), allow_nan=False)
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(CONTENTS, text)
            for name, array in writer.arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


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
        it was one). Otherwise a `SavedResult`, `SavedStructuredResult` or `SavedGlmerResult`, which has the fit's
        figures and predicts new rows.

    Raises
    ------
    DataError
        There is no such file.
    SavedFormatError
        It is none that a fit was saved in, or one of another format.

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
    if isinstance(path, (str, os.PathLike)) and not os.path.exists(path):
        raise DataError(f"there is no such file: {os.fspath(path)}")
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
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except DAMAGED as error:
        raise SavedFormatError(f"{path} is no file that fastlmm_core saved a fit in ({error})") from None
    design = contents["design"]
    if "family" in contents:
        return cast("LmerResult", restored(design, contents))
    saved = {k: v for k, v in contents.items() if k != "formula"}
    if "generalised" in contents:
        return cast("LmerResult", shown(design, contents, saved))
    if "figures" not in contents:
        options = FitOptions(
            reml=contents["reml"], control=contents["control"], start=contents["theta"], given=contents["given"]
        )
        return _set_up(design, contents, options)
    core = SavedCore(**contents["figures"])
    kept = {**contents["kept"], "saved": saved}
    options = FitOptions(reml=core.reml)
    kind = SavedStructuredResult if "theta_labels" in kept else SavedResult
    return cast("LmerResult", kind(design, cast("Any", core), contents["formula"], options, kept))
