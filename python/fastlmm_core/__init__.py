"""Linear mixed models with lme4's formulas and answers, on a compiled core.

Nothing is imported until it is used: `import fastlmm_core.core` loads neither pandas nor formulaic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastlmm_core.lazy import lazy_attributes

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.datasets import dataset_names, load_dataset
    from fastlmm_core.errors import (
        BoundaryWarning,
        ConvergenceWarning,
        DataError,
        DependencyError,
        EmptyLevelWarning,
        FastLMMError,
        FastLMMWarning,
        FormulaError,
        FormulaWarning,
        IdentifiabilityWarning,
        InUseError,
        LaplaceWarning,
        MemoryLimitError,
        ModelError,
        NotSavedError,
        NumericalError,
        RankWarning,
        RepeatedValuesError,
        SavedFormatError,
        SeparationWarning,
        SpellingError,
        StreamedError,
        UnitError,
    )
    from fastlmm_core.fitting.relationships import neighbours, pedigree
    from fastlmm_core.formula import build_design, parse_formula
    from fastlmm_core.formula.sources import stream
    from fastlmm_core.inference.comparison import compare
    from fastlmm_core.inference.diagnostics import is_singular
    from fastlmm_core.inference.exact_ratio import exact_test
    from fastlmm_core.inference.expand import expand
    from fastlmm_core.inference.likelihood_ratio import anova
    from fastlmm_core.inference.nested_tests import bootstrap_test
    from fastlmm_core.inference.power import power
    from fastlmm_core.results.glmer import glmer
    from fastlmm_core.results.glmer_many import glmer_many
    from fastlmm_core.results.glmer_result import GlmerResult
    from fastlmm_core.results.hypothetical import hypothetical, power_curve
    from fastlmm_core.results.lmer import lmer
    from fastlmm_core.results.lmer_many import lmer_many, lmer_many_batches
    from fastlmm_core.results.model_table import model_table
    from fastlmm_core.results.result import LmerResult
    from fastlmm_core.results.saved import load

__version__ = "0.1.0"

__all__ = [
    "BoundaryWarning",
    "Control",
    "ConvergenceWarning",
    "DataError",
    "DependencyError",
    "EmptyLevelWarning",
    "FastLMMError",
    "FastLMMWarning",
    "FormulaError",
    "FormulaWarning",
    "GlmerResult",
    "IdentifiabilityWarning",
    "InUseError",
    "LaplaceWarning",
    "LmerResult",
    "MemoryLimitError",
    "ModelError",
    "NotSavedError",
    "NumericalError",
    "RankWarning",
    "RepeatedValuesError",
    "SavedFormatError",
    "SeparationWarning",
    "SpellingError",
    "StreamedError",
    "UnitError",
    "__version__",
    "anova",
    "bootstrap_test",
    "build_design",
    "compare",
    "dataset_names",
    "exact_test",
    "expand",
    "glmer",
    "glmer_many",
    "hypothetical",
    "is_singular",
    "lmer",
    "lmer_many",
    "lmer_many_batches",
    "load",
    "load_dataset",
    "model_table",
    "neighbours",
    "parse_formula",
    "pedigree",
    "power",
    "power_curve",
    "stream",
]

# public name -> the module that defines it
_LAZY = {
    "Control": "core",
    "BoundaryWarning": "errors",
    "ConvergenceWarning": "errors",
    "DataError": "errors",
    "DependencyError": "errors",
    "EmptyLevelWarning": "errors",
    "FastLMMError": "errors",
    "FastLMMWarning": "errors",
    "FormulaError": "errors",
    "FormulaWarning": "errors",
    "IdentifiabilityWarning": "errors",
    "InUseError": "errors",
    "GlmerResult": "results.glmer_result",
    "LaplaceWarning": "errors",
    "LmerResult": "results",
    "MemoryLimitError": "errors",
    "ModelError": "errors",
    "NotSavedError": "errors",
    "NumericalError": "errors",
    "RankWarning": "errors",
    "RepeatedValuesError": "errors",
    "SavedFormatError": "errors",
    "SeparationWarning": "errors",
    "SpellingError": "errors",
    "StreamedError": "errors",
    "UnitError": "errors",
    "anova": "inference.likelihood_ratio",
    "bootstrap_test": "inference.nested_tests",
    "build_design": "formula",
    "compare": "inference.comparison",
    "dataset_names": "datasets",
    "exact_test": "inference.exact_ratio",
    "expand": "inference.expand",
    "hypothetical": "results.hypothetical",
    "glmer": "results.glmer",
    "glmer_many": "results.glmer_many",
    "is_singular": "inference.diagnostics",
    "lmer": "results.lmer",
    "lmer_many": "results.lmer_many",
    "lmer_many_batches": "results.lmer_many",
    "load": "results.saved",
    "load_dataset": "datasets",
    "model_table": "results.model_table",
    "neighbours": "fitting.relationships",
    "parse_formula": "formula",
    "pedigree": "fitting.relationships",
    "power": "inference.power",
    "power_curve": "results.hypothetical",
    "stream": "formula.sources",
}


_SUBPACKAGES = frozenset(
    {"adapters", "core", "dask", "datasets", "errors", "families", "fitting", "formula", "inference", "results"}
)


_attribute = lazy_attributes(__name__, _LAZY, _SUBPACKAGES)


def __getattr__(name: str) -> Any:
    if name not in _LAZY and name not in _SUBPACKAGES:
        from fastlmm_core.fitting.spelling import RESULT_NAMES

        if name in RESULT_NAMES:
            raise AttributeError(f"there is no function {name}(): it is {RESULT_NAMES[name]} of a result")
    return _attribute(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
