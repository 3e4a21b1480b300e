from typing import Any

import pytest

from training.data.input.sizing import BACKBONE, choose_sizing
from training.options.config import TrainConfig


@pytest.mark.parametrize(
    ("sides", "own"),
    [([(28, 28)] * 3, 28), ([(28, 28), (30, 30)], 64), ([(28, 30)] * 2, 64), ([(100, 100)] * 2, 64), ([(7, 7)], 64)],
)
def test_the_own_side_is_that_of_all_images_up_to_64_px(sides: list[tuple[int, int]], own: int) -> None:
    assert choose_sizing(TrainConfig(model="cnn"), sides).side == own


@pytest.mark.parametrize(
    ("sizes", "options", "model", "side"),
    [
        ([(450, 600)] * 3, {}, BACKBONE, 128),
        ([(96, 2000)], {}, BACKBONE, 128),
        ([(95, 2000)], {}, "cnn", 64),
        ([(28, 28)] * 3 + [(450, 600)], {}, "cnn", 64),
        ([(28, 28)] + [(450, 600)] * 2, {}, BACKBONE, 128),
        ([], {}, "cnn", 64),
        ([(450, 600)], {"image_size": 224}, BACKBONE, 224),
        ([(450, 600)], {"model": "cnn"}, "cnn", 64),
        ([(450, 600)], {"model": "mlp"}, "mlp", 64),
        ([(28, 28)], {"model": "resnet18"}, "resnet18", 128),
        ([(450, 600)], {"width": 64}, "cnn", 64),
        ([(450, 600)], {"batch_norm": False}, "cnn", 64),
        ([(450, 600)], {"batch_norm": True, "hidden": (64,)}, "mlp", 64),
    ],
)
def test_photographs_get_a_backbone_and_small_images_the_cnn(
    sizes: list[tuple[int, int]], options: dict[str, Any], model: str, side: int
) -> None:
    chosen = choose_sizing(TrainConfig(**options), sizes)
    assert (chosen.model, chosen.side) == (model, side)
    assert bool(chosen.reason) == ("model" not in options)
