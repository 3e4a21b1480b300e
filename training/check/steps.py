"""Lines of the check about the speed of a step alone: the images are on the device already."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from serving.contract.card.model_card import Normalization
from serving.contract.decode import Preprocessing
from serving.contract.selfcheck import Result
from training.device import training_dtype
from training.engine import optimizer
from training.models import networks
from training.options.config import TrainConfig
from training.options.settled import settle_options

SIZES = {"mlp": 64, "cnn": 64, "tf_efficientnet_lite0": 128}
"""Side of the images in pixels."""
BATCHES = {"mlp": 4096, "cnn": 1024, "tf_efficientnet_lite0": 256}
"""Images on a GPU."""
BATCH_ON_CPU = 16
SECONDS = 1.0
"""Time in which steps are counted; three at least are made."""
CLASSES = 10


def step(family: str, device: torch.device) -> Result:
    """Images a second of forward pass, backward pass and optimizer, on one batch that stays on the device."""
    side, batch = SIZES[family], BATCHES[family] if device.type == "cuda" else BATCH_ON_CPU
    weights: dict[str, Any] = {} if family in ("mlp", "cnn") else {"weights": "none"}
    config = settle_options(
        TrainConfig(model=family, image_size=side, batch_size=batch, **weights), training_images=10 * batch
    )
    preprocessing = Preprocessing(height=side, width=side, channels=3, interpolation="area")
    scale = Normalization(mode="standard", mean=(0.5,) * 3, std=(0.25,) * 3, max_pixel_value=255.0)
    model = networks.build(config, preprocessing, scale, CLASSES)
    model = model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    stepper, dtype = optimizer.make(model, config), training_dtype(config, model)
    scaler = GradScaler(device.type, enabled=dtype is torch.float16)
    images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % CLASSES

    def run() -> None:
        stepper.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(stepper)
        scaler.update()

    count, seconds = _count(run, device)
    rate = count * batch / seconds
    kind = str(dtype).removeprefix("torch.")
    return Result(detail=f"{rate:,.0f} images/s of {side} px, batch {batch}, {kind}", numbers={"images/s": rate})


def _count(run: Callable[[], None], device: torch.device) -> tuple[int, float]:
    """How many runs are done in how many seconds, after three that are not counted."""
    for _ in range(3):
        run()
    _wait(device)
    start, count = perf_counter(), 0
    while count < 3 or perf_counter() - start < SECONDS:
        run()
        _wait(device)
        count += 1
    return count, perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
