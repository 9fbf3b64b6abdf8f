"""Every picture against its golden image, without text, and what all pictures promise.

FASTLMM_UPDATE_IMAGES=1 writes the golden images anew: look at them before you commit them.
"""

from __future__ import annotations

import os
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from matplotlib.testing.decorators import remove_ticks_and_titles

from fastlmm_core import DataError, ModelError, glmer, lmer, load_dataset

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 12.0
"""Root mean square of the difference, of 255: what versions of matplotlib differ by; a wrong picture does by more."""


@pytest.fixture(scope="module")
def cake():
    return lmer("angle ~ recipe * temp + (1 | recipe:replicate)", load_dataset("cake"))


@pytest.fixture(scope="module")
def intercepts(sleepstudy):
    return lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)


PICTURES = {
    "caterpillar": lambda slopes, *_: slopes.plot.caterpillar(),
    "random_qq": lambda slopes, *_: slopes.plot.random_qq(),
    "shrinkage_slopes": lambda slopes, *_: slopes.plot.shrinkage(),
    "shrinkage_intercepts": lambda slopes, cake, *_: cake.plot.shrinkage(),
    "residuals": lambda slopes, *_: slopes.plot.residuals(),
    "simulated_residuals": lambda slopes, *_: slopes.plot.simulated_residuals(n=100, seed=1),
    "forest": lambda slopes, cake, intercepts, *_: slopes.plot.forest(intercepts, names=["slopes", "intercepts"]),
    "profile": lambda slopes, *_: slopes.plot.profile(),
    "surface": lambda slopes, *_: slopes.plot.surface("Subject.Intercept", 2),
    "pairs": lambda slopes, *_: slopes.plot.pairs(),
    "effects_curves": lambda slopes, cake, *_: cake.plot.effects("temp", by="recipe"),
    "effects_points": lambda slopes, cake, *_: cake.plot.effects("recipe", at={"temp": 200}),
    "fitted_lines": lambda slopes, cake, intercepts, data: slopes.plot.fitted_lines(data, "Days", n=8),
    "influence": lambda slopes, *_: slopes.plot.influence("Subject"),
    "variance": lambda slopes, *_: slopes.plot.variance(),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_the_golden_one(name, slopes, cake, intercepts, sleepstudy, tmp_path):
    figure = PICTURES[name](slopes, cake, intercepts, sleepstudy)
    assert isinstance(figure, Figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what the layout engine says of panels without their titles
        remove_ticks_and_titles(figure)
    for ax in figure.axes:
        ax.set(xlabel="", ylabel="")
        for text in [*ax.texts]:
            text.remove()
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    golden = GOLDEN / f"{name}.png"
    made = golden if os.environ.get("FASTLMM_UPDATE_IMAGES") else tmp_path / f"{name}.png"
    figure.savefig(made, dpi=40)
    if made != golden:
        assert compare_images(str(golden), str(made), TOLERANCE) is None


def test_pictures_leave_pyplot_alone(slopes):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    slopes.plot.caterpillar()
    assert plt.get_fignums() == before


def test_a_picture_goes_into_the_axes_given(slopes, cake):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert slopes.plot.caterpillar(ax=[left, right]) is figure
    assert left.get_title() == "Intercept | Subject"
    assert cake.plot.variance(ax=left) is figure


def test_a_notebook_shows_the_figure(cake):
    assert cake.plot.variance()._repr_png_().startswith(b"\x89PNG")


def test_ranks_among_simulations_are_uniform_where_the_model_is_right(slopes):
    from fastlmm_core.plots.residuals import simulated_ranks

    drawn = slopes.refit(slopes.simulate(1, seed=5)["sim_1"].to_numpy())
    ranks = simulated_ranks(drawn, 200, 3)
    assert ranks.min() > 0.0
    assert ranks.max() < 1.0
    assert abs(ranks.mean() - 0.5) < 0.15


@pytest.mark.parametrize(
    ("draw", "error", "words"),
    [
        (lambda f, d: f.plot.caterpillar("Days"), ModelError, "no random effects of 'Days': the model has Subject"),
        (lambda f, d: f.plot.caterpillar(level=95), ModelError, "between 0 and 1"),
        (lambda f, d: f.plot.effects("Subject"), DataError, "'Subject' is no predictor of the fixed part"),
        (lambda f, d: f.plot.surface("sigma"), DataError, "theta has no entry 'sigma'"),
        (lambda f, d: f.plot.surface(0, 7), DataError, "there is no entry 7"),
        (lambda f, d: f.plot.fitted_lines(d, "days"), DataError, "no column 'days'"),
        (lambda f, d: f.plot.simulated_residuals(n=3), ModelError, "at least 20"),
        (lambda f, d: f.plot.forest(names=["a", "b"]), DataError, "2 entries for 1 models"),
    ],
)
def test_errors_name_what_is_wrong(draw, error, words, slopes, sleepstudy):
    with pytest.raises(error, match=words):
        draw(slopes, sleepstudy)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda f, d: f.plot.pairs(), "no contours over theta: see profile"),
        (lambda f, d: f.plot.surface(), "no contours over theta: see profile"),
        (lambda f, d: f.plot.fitted_lines(d, "Days"), "this model has no random effects to draw"),
        (lambda f, d: f.plot.shrinkage(), "this model has no random effects to draw"),
        (lambda f, d: f.plot.caterpillar(), "this model has no random effects to draw"),
    ],
)
def test_a_model_of_residuals_alone_says_what_it_has_not(draw, words, sleepstudy):
    fit = lmer("Reaction ~ Days", sleepstudy, residual="ar1(Days | Subject)")
    with pytest.raises(ModelError, match=words):
        draw(fit, sleepstudy)
    assert len(fit.plot.residuals().axes) == 4


def test_a_single_variance_has_no_contours(sleepstudy):
    fit = lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
    for draw in (fit.plot.pairs, fit.plot.surface):
        with pytest.raises(ModelError, match="at least two covariance parameters: see profile"):
            draw()


def test_classes_in_order_have_residuals_on_the_scale_that_they_have(sleepstudy):
    """Their means are probabilities, one a class: the linear predictor is what there is along a picture."""
    classes = sleepstudy.assign(slow=np.digitize(sleepstudy["Reaction"], [250.0, 300.0]))
    fit = glmer("slow ~ Days + (1 | Subject)", classes, family="ordinal")
    assert fit.plot.residuals().axes[0].get_ylabel().startswith("quantile residual")
    assert fit.plot.simulated_residuals().axes[1].get_xlabel() == "population linear predictor"


def test_panels_wanted_and_given(slopes):
    figure = Figure()
    with pytest.raises(ModelError, match="ax has 1 axes, but this figure needs 2"):
        slopes.plot.caterpillar(ax=figure.subplots())


def test_residual_trend_needs_enough_points():
    from fastlmm_core.plots.canvas import canvas
    from fastlmm_core.plots.residuals import trend

    _, ax = canvas(None)
    trend(ax, np.arange(10.0), np.arange(10.0))
    assert not ax.lines


def test_names_of_many_levels_have_room():
    few = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    many = lmer("distance ~ age + (1 | Subject)", load_dataset("Orthodont"))
    for draw in ("caterpillar", "shrinkage"):
        low, high = (getattr(fit.plot, draw)() for fit in (few, many))
        assert high.get_figheight() > low.get_figheight(), draw
        place = high.axes[0]
        high.draw_without_rendering()
        names = [label.get_window_extent() for label in place.get_yticklabels()]
        assert not any(a.overlaps(b) for a, b in pairwise(names)), draw
