"""What statsmodels' tables ask a result for, and the file that it is saved in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    from os import PathLike

    from fastlmm_core.results.result import LmerResult

__all__ = ["ModelNames", "TableMethods"]


@dataclass(frozen=True)
class ModelNames:
    """The names of a model's variables, where statsmodels' tables look for them.

    Attributes
    ----------
    endog_names : str
        The response.
    exog_names : list of str
        The fixed-effects columns.
    formula : str
    """

    endog_names: str
    exog_names: list[str]
    formula: str


@answering
class TableMethods(FittedModel):
    """Base of the results: the names that statsmodels' `summary_col` reads, and `save`."""

    @property
    def model(self) -> ModelNames:
        """The names of response and columns, as statsmodels has them: `endog_names`, `exog_names`."""
        return ModelNames(self.design.formula.response, list(self.design.x_names), self.formula)

    def save(self, path: str | PathLike[str], *, data: bool = False) -> None:
        """Write the fit to a file that `fastlmm_core.load` reads: arrays and JSON in a zip archive, without pickle.

        Parameters
        ----------
        path : path
            Overwritten where it exists.
        data : bool
            Keep the rows of the fit, too. Without them the file is small and a loaded result has its figures, summary,
            random effects, tests and Wald intervals of coefficients, and its predictions for new rows; with them it is
            a result like this one.

        Raises
        ------
        ModelError
            Variances that the data do not identify, without the rows; a family of your own; something in the fit, such
            as levels that are objects of your own, that no such file can hold.

        Examples
        --------
        >>> import os, tempfile
        >>> from fastlmm_core import lmer, load, load_dataset
        >>> path = os.path.join(tempfile.mkdtemp(), "fit.fastlmm")
        >>> lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).save(path)
        >>> load(path).params
        Intercept    1527.5
        dtype: float64
        """
        from fastlmm_core.results.saved import save

        save(cast("LmerResult", self), path, data=data)
