from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.criterion import Criterion
from fastlmm_core._native.criterion.trust_region import TrustRegion

class Newton(TrustRegion):
    messages: dict[int, str]
    def __init__(
        self,
        criterion: Criterion,
        max_evaluations: int,
        tol: float,
        held: NDArray[np.int64] | None = None,
        rough: bool = False,
        loose: bool = False,
    ) -> None: ...
    @property
    def criterion(self) -> Criterion: ...
    @property
    def max_evaluations(self) -> int: ...
    @property
    def n_evaluations(self) -> int: ...
    @property
    def n_derivatives(self) -> int: ...
    @property
    def value(self) -> float: ...
    def minimise(
        self,
        start: NDArray[np.float64],
        on_evaluation: Callable[[int, NDArray[np.float64], float, float, float], None] | None = None,
    ) -> tuple[NDArray[np.float64], float, int]: ...
    def minimise_many(
        self,
        lead: NDArray[np.float64],
        tail: NDArray[np.float64],
        xty: NDArray[np.float64],
        constants: NDArray[np.float64],
        start: NDArray[np.float64],
        theta: NDArray[np.float64],
        value: NDArray[np.float64],
        beta: NDArray[np.float64],
        ld: NDArray[np.float64],
        outcome: NDArray[np.int32],
        stop: NDArray[np.int32] | None = None,
    ) -> None: ...
    def evaluations(self) -> NDArray[np.float64]: ...
    def last_derivatives(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
