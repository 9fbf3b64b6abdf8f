"""Shapes of models that every test of an evaluator runs through: block sizes, engines, criteria."""

import pytest

__all__ = ["MODELS", "criteria", "models", "models_of_all_engines", "with_tail"]

MODELS = {
    "one scalar": ((11,), (1,), "auto"),
    "one slope": ((9,), (2,), "auto"),
    "one cubic": ((8,), (3,), "auto"),
    **{
        f"{name}, {engine}": (*model, engine)
        for engine in ("dense", "sparse")
        for name, model in {
            "crossed": ((13, 7), (1, 1)),
            "slopes lead": ((11, 6), (3, 1)),
            "slopes in the tail": ((25, 7), (1, 2)),
            "wide blocks": ((15, 6, 5), (2, 3, 3)),
            "mixed blocks": ((30, 6, 5, 4), (2, 1, 3, 2)),
        }.items()
    },
}

models = pytest.mark.parametrize(("levels", "widths", "engine"), MODELS.values(), ids=MODELS.keys())
TEXTBOOK = {f"{name}, cholmod": (*MODELS[name][:2], "cholmod") for name in ("one slope",)} | {
    name.replace("dense", "cholmod"): (*model[:2], "cholmod") for name, model in MODELS.items() if "dense" in name
}
every = MODELS | TEXTBOOK
models_of_all_engines = pytest.mark.parametrize(("levels", "widths", "engine"), every.values(), ids=every.keys())
tailed = {name: model for name, model in MODELS.items() if len(model[0]) > 1}
with_tail = pytest.mark.parametrize(("levels", "widths", "engine"), tailed.values(), ids=tailed.keys())
criteria = pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
