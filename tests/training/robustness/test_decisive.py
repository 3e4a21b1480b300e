from pathlib import Path

import numpy as np
from jaxtyping import Float32

from serving.contract.card.model_card import ModelCard
from serving.contract.covers import GRID
from serving.contract.model import open_model
from training.models.prediction import Images
from training.robustness.decisive import REGIONS, decisive_regions

SIDE = 5


class Bright:
    """Gives class 0 the probability that the region in row 1, column 2 is bright, and class 1 the rest."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    def predict(self, images: Images) -> Float32[np.ndarray, "images classes"]:
        share = images[:, SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE].mean((1, 2, 3), dtype=np.float32) / 255
        return np.stack([share, 1 - share], axis=1)


def test_the_region_that_decides_is_among_a_quarter_of_all(run: Path) -> None:
    image = np.zeros((SIDE * GRID, SIDE * GRID, 1), np.uint8)
    image[SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE] = 255
    regions = decisive_regions(Bright(open_model(run / "model.onnx").card), image)
    assert regions.shape == (GRID, GRID)
    assert regions.sum() == REGIONS
    # Covers overlap by half a region, so that those of the neighbours lower the probability, too.
    assert regions[0:3, 1:4].all()
