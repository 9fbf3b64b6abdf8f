"""From a formula and a table to the arrays of a model: parse, frame, design, each callable alone."""

from fastlmm_core.formula.design import Design, RandomDesign, build_design
from fastlmm_core.formula.newdata import NewDesign, NewRandom
from fastlmm_core.formula.parse import ParsedFormula, RandomTerm, parse_formula

__all__ = [
    "Design",
    "NewDesign",
    "NewRandom",
    "ParsedFormula",
    "RandomDesign",
    "RandomTerm",
    "build_design",
    "parse_formula",
]
