"""What answers cost by the true class, and the answer of the least expected cost."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A cost matrix (Elkan 2001): its actions are the classes, and perhaps others, such as `refer`."""

    actions: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    """A row for each class of the model, in its order, and in it the cost of each action where that class is true."""

    def expected(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Float64[np.ndarray, "batch actions"]:
        """The expected cost of each action, by the probabilities of the classes."""
        costs: np.ndarray = probabilities.astype(np.float64) @ np.array(self.matrix, np.float64)
        return costs

    def least(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Int64[np.ndarray, " batch"]:
        """Index of the action of the least expected cost; of equal ones the first."""
        chosen: np.ndarray = self.expected(probabilities).argmin(1)
        return chosen
