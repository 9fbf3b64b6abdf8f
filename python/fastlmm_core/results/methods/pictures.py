"""The pictures of a result, behind one name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    from fastlmm_core.plots.accessor import Plots

__all__ = ["PictureMethods"]


@answering
class PictureMethods:
    """Base of the results: `plot`."""

    @property
    def plot(self) -> Plots:
        """Pictures of the fit, one call each: ``result.plot.caterpillar()``; see `Plots`. They need matplotlib."""
        from fastlmm_core.plots.accessor import Plots

        return Plots(self)
