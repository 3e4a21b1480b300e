"""Options as they are after the data is known."""

from dataclasses import replace
from typing import Any

from training.options.config import TrainConfig
from training.options.settled import SettledConfig, settle_options


def settled(config: TrainConfig, *, image_size: int, training_images: int, **others: Any) -> SettledConfig:
    """What a run with images of this size trains by; --model auto takes the CNN."""
    model = "cnn" if config.model == "auto" else config.model
    return settle_options(
        replace(config, model=model, image_size=image_size), training_images=training_images, **others
    )
