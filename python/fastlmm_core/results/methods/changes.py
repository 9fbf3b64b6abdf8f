"""The same model with something changed, and elimination of its terms, as methods of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    from fastlmm_core.results.result import LmerResult
    from fastlmm_core.results.step import StepResult

__all__ = ["ChangeMethods"]


@answering
class ChangeMethods:
    """Fits that follow from a fit."""

    def update(self, formula: str | None = None, data: Any = None, **changes: Any) -> LmerResult:
        """Fit again with changes.

        Parameters
        ----------
        formula : str, optional
            As in R's `update`: ``". ~ . - Days"``, ``"log(.) ~ ."``, ``"~ . + (1 | item)"``, "." being the old side.
            Terms are compared as sets; ``- (0 + x | g)`` takes one effect out of ``(x | g)``.
        data : table, optional
            Another table. Without it that of the fit is used while somebody holds it.
        **changes
            Arguments of `lmer`. `reml`, `control` and `start` alone need no table; the others are as they were given,
            texts being evaluated again.

        Raises
        ------
        FormulaError
            A term is taken out that is not there.
        DataError
            The data are not kept.
        ModelError
            Not an argument of `lmer`.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> data = load_dataset("sleepstudy")
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", data)
        >>> fit.update("log(.) ~ . - (0 + Days | Subject)")
        <LmerResult: log(Reaction) ~ Days + (1 | Subject); REML criterion -262.92; 180 rows; Subject 18>
        >>> fit.update(reml=False)
        <LmerResult: Reaction ~ Days + (Days | Subject); deviance 1751.94; 180 rows; Subject 18>
        """
        from fastlmm_core.results.update import update

        return update(cast("LmerResult", self), formula, data, **changes)

    def step(
        self,
        *,
        random: bool = True,
        fixed: bool = True,
        keep: Sequence[str] | str | None = None,
        alpha_random: float = 0.1,
        alpha_fixed: float = 0.05,
        ddf: str = "satterthwaite",
        data: Any = None,
    ) -> StepResult:
        """Backward elimination of random effects, then of fixed terms.

        Random effects go by the likelihood ratios of `ranova`, fixed terms by the F tests of `drop1`; each time the one
        with the largest p, while that is above its level. A fixed term goes only when no other contains it; one random
        term stays.

        Parameters
        ----------
        random, fixed : bool
            Which part to reduce.
        keep : str or list of str, optional
            Terms that stay, as `ranova` and `drop1` name them.
        alpha_random, alpha_fixed : float
        ddf : str
            Of the F tests.
        data : table, optional
            The table of the fit, where nobody else holds it.

        Returns
        -------
        StepResult
            `.table`, the tests in the order of elimination, and `.result`, the final model. Its p-values ignore the
            selection, and are too small.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> data = load_dataset("cake")
        >>> fit = lmer("angle ~ recipe * temperature + (1 | recipe:replicate)", data)
        >>> fit.step().result.formula
        'angle ~ temperature + (1 | recipe:replicate)'
        """
        from fastlmm_core.results.step import step

        return step(
            cast("LmerResult", self),
            random=random,
            fixed=fixed,
            keep=keep,
            alpha_random=alpha_random,
            alpha_fixed=alpha_fixed,
            ddf=ddf,
            data=data,
        )
