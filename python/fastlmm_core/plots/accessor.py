"""`result.plot`: a picture is one call away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.spelling import answering, no_attribute

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Plots"]


@answering
class Plots:
    """The pictures of one fit.

    Each method returns a matplotlib Figure of its own, or that of the axes given as ``ax`` (several where the picture
    has several panels). pyplot's state is neither read nor changed: save with ``figure.savefig(...)``; a notebook
    shows it.

    Examples
    --------
    >>> from fastlmm_core import lmer, load_dataset
    >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    >>> figure = fit.plot.caterpillar()
    >>> len(figure.axes)
    2
    """

    def __init__(self, fit: Any) -> None:
        self._fit = fit

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(type(self), name)

    def caterpillar(
        self,
        group: str | None = None,
        term: str | None = None,
        *,
        level: float = 0.95,
        sort: bool = True,
        ax: Any = None,
    ) -> Figure:
        """Conditional modes of the random effects with intervals from their conditional standard deviations.

        Parameters
        ----------
        group, term : str, optional
            One grouping factor or effect; all of them by default, a panel each.
        level : float
            Of the normal intervals.
        sort : bool
            By size, or in the order of the levels.
        ax : Axes or sequence of Axes, optional
        """
        from fastlmm_core.plots.random_effects import caterpillar

        return caterpillar(self._fit, group, term, level=level, sort=sort, ax=ax)

    def random_qq(self, group: str | None = None, term: str | None = None, *, ax: Any = None) -> Figure:
        """Conditional modes against normal quantiles, a panel an effect; the line has their mean and spread."""
        from fastlmm_core.plots.random_effects import random_qq

        return random_qq(self._fit, group, term, ax=ax)

    def shrinkage(self, group: str | None = None, *, ax: Any = None) -> Figure:
        """Each level's least-squares effects from its own rows, given all else, beside its conditional modes.

        One effect: an interval a level. More: the first against each of the others, a segment a level.
        """
        from fastlmm_core.plots.random_effects import shrinkage

        return shrinkage(self._fit, group, ax=ax)

    def residuals(self, *, ax: Any = None) -> Figure:
        """Pearson residuals against the fit, their scale against the fit, a normal quantile plot, and leverages.

        Of an ordinal response quantile residuals against the linear predictor.
        """
        from fastlmm_core.plots.residuals import residual_panel

        return residual_panel(self._fit, ax=ax)

    def simulated_residuals(self, *, n: int = 250, seed: Any = 1, ax: Any = None) -> Figure:
        """Ranks of the responses among ``n`` simulated ones: their distribution, and their quartiles along the fit.

        Uniform where the model is right, whatever its family (Dunn & Smyth 1996).
        """
        from fastlmm_core.plots.residuals import simulated_panel

        return simulated_panel(self._fit, n=n, seed=seed, ax=ax)

    def forest(
        self,
        *others: Any,
        names: Sequence[str] | None = None,
        level: float = 0.95,
        intercept: bool = False,
        exp: bool = False,
        ax: Any = None,
    ) -> Figure:
        """Fixed effects with intervals, of this fit and any others.

        Parameters
        ----------
        others : fitted models
            Drawn beside this one.
        names : sequence of str, optional
            A name a model for the legend; the formulas by default.
        level : float
            Of the intervals, with the degrees of freedom of `tidy`.
        intercept : bool
            Whether intercepts are drawn.
        exp : bool
            Odds, rate or mean ratios on a logarithmic axis.
        ax : Axes, optional
        """
        from fastlmm_core.plots.coefficients import forest

        fits = [self._fit, *others]
        shown = [str(fit.formula) for fit in fits] if names is None else list(names)
        if len(shown) != len(fits):
            raise DataError(f"names has {len(shown)} entries for {len(fits)} models")
        if len(set(shown)) < len(shown):
            shown = [f"{name} ({k})" for k, name in enumerate(shown, start=1)]
        return forest(dict(zip(shown, fits, strict=True)), level=level, intercept=intercept, exp=exp, ax=ax)

    def profile(self, which: Any = None, *, levels: Sequence[float] = (0.5, 0.8, 0.95), ax: Any = None) -> Figure:
        """ζ, the signed root of the deviance's rise, against each parameter; a straight line means a normal likelihood.

        Parameters
        ----------
        which : str or sequence of str, optional
            As in `LmerResult.profile`.
        levels : sequence of float
            Confidence levels whose limits are marked.
        ax : Axes or sequence of Axes, optional
        """
        from fastlmm_core.plots.profiles import zeta

        found = self._fit.profile() if which is None else self._fit.profile(which)
        return zeta(found, levels=levels, ax=ax)

    def surface(self, a: int | str = 0, b: int | str = 1, *, spread: float = 1.0, ax: Any = None) -> Figure:
        """Contours of the criterion over two entries of θ, the others held at their estimates.

        Contours are where the criterion has risen by χ²(2)'s quantiles: a likelihood-ratio region if the other entries
        were known. β and σ are profiled out.

        Parameters
        ----------
        a, b : int or str
            Entries of `theta`, by position or label.
        spread : float
            Half width of the picture relative to the estimate.
        ax : Axes, optional
        """
        from fastlmm_core.plots.profiles import surface

        criterion, theta = self._criterion(), self._fit.theta
        return surface(
            criterion, theta.to_numpy(), list(theta.index), self._entry(a), self._entry(b), spread=spread, ax=ax
        )

    def pairs(self, *, spread: float = 1.0, ax: Any = None) -> Figure:
        """`surface` for every pair of entries of θ."""
        from fastlmm_core.plots.profiles import pairs

        criterion, theta = self._criterion(), self._fit.theta
        return pairs(criterion, theta.to_numpy(), list(theta.index), spread=spread, ax=ax)

    def effects(
        self,
        x: str,
        *,
        by: str | None = None,
        at: Any = None,
        level: float = 0.95,
        ddf: str | None = None,
        ax: Any = None,
    ) -> Figure:
        """What the fixed part predicts along one predictor, the others averaged as in `emmeans`, with a band.

        Of a generalised fit on the scale of the response, where the random effects are zero.

        Parameters
        ----------
        x : str
            A column of the fixed part: a curve for a number, points for a factor.
        by : str, optional
            A second column; a curve a level.
        at : mapping, optional
            Values of other columns, as in `emmeans`.
        level, ddf
            Of the band; degrees of freedom are Satterthwaite's by default, a generalised fit has none.
        ax : Axes, optional
        """
        from fastlmm_core.plots.effects import effects

        return effects(self._fit, x, by=by, at=at, level=level, ddf=ddf, ax=ax)

    def fitted_lines(self, data: Any, x: str, group: str | None = None, *, n: int = 12, ax: Any = None) -> Figure:
        """Small multiples: the rows of a level, its own fitted line, and the population's (dashed).

        Parameters
        ----------
        data : table
            The table of the fit: a fit keeps no copy of it.
        x : str
            Column along the horizontal axis.
        group : str, optional
            Grouping factor; the first by default.
        n : int
            Levels shown, at most.
        ax : sequence of Axes, optional
        """
        from fastlmm_core.plots.effects import fitted_lines

        return fitted_lines(self._fit, data, x, group, n=n, ax=ax)

    def influence(self, by: Any = "obs", *, method: str | None = None, label: int = 5, ax: Any = None) -> Figure:
        """Cook's distance of every case, and how far each coefficient moves without it.

        Parameters
        ----------
        by, method
            As in the result's own `influence`, whose method it is by default.
        label : int
            How many of the largest distances are named.
        ax : sequence of two Axes, optional
        """
        from fastlmm_core.plots.influence import influence

        way = {} if method is None else {"method": method}
        return influence(self._fit.influence(by, **way), label=label, ax=ax)

    def variance(self, *, ax: Any = None) -> Figure:
        """Shares of an observation's variance: fixed effects, each random term, residual (Nakagawa & Schielzeth)."""
        from fastlmm_core.plots.variances import variance_decomposition

        return variance_decomposition(self._fit, ax=ax)

    def _criterion(self) -> Any:
        from fastlmm_core.fitting.fit import objective_of
        from fastlmm_core.fitting.generalised_model import GeneralisedModel
        from fastlmm_core.fitting.models import is_structured

        if isinstance(self._fit, GeneralisedModel):
            raise ModelError("the deviance of a generalised fit is not profiled over theta alone: see profile()")
        if is_structured(self._fit.design):
            raise ModelError("a fit with a covariance structure has no contours over theta: see profile()")
        if len(self._fit.theta) < 2:
            raise ModelError("contours need a model with at least two covariance parameters: see profile()")
        return objective_of(self._fit.design, self._fit.options)

    def _entry(self, k: int | str) -> int:
        labels = list(self._fit.theta.index)
        if isinstance(k, str):
            if k not in labels:
                raise DataError(f"theta has no entry {k!r}: it has {', '.join(labels)}")
            return labels.index(k)
        if not 0 <= k < len(labels):
            raise DataError(f"theta has {len(labels)} entries, so there is no entry {k}")
        return int(np.intp(k))
