"""The loss that training minimizes, computed on one batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.data import class_balance
from training.data.augmentation.tensors import BatchAugmentation
from training.data.loader import Batches
from training.device import training_dtype
from training.engine.mixup import Mixing
from training.metrics.classification import Labels
from training.options.settled import SettledConfig


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Cross entropy of augmented and mixed images with label smoothing and class weights or adjusted logits, if asked.

    The network computes in `dtype`; the loss is always computed in float32.
    """

    augment: BatchAugmentation
    mix: Mixing
    class_weights: Tensor
    """Float32 `[classes]`, on the device that trains: the weight of an image by its class, 1 but for --balance loss."""
    log_frequencies: Tensor
    """Float32 `[classes]`, added to the logits that are trained; zeros where they are not adjusted."""
    label_smoothing: float
    smoothed_to: Tensor
    """Float32 `[classes]`: what a label is smoothed towards, the shares of the classes that the loss sees.

    With equal shares (Szegedy et al. 2016) a tenth would give each of seven classes 1.4 % of every label, also one that
    has 1 % of the images: the network learned that, and ranked images less well."""
    dtype: torch.dtype

    @classmethod
    def of(cls, config: SettledConfig, labels: Labels, classes: int, model: nn.Module, batches: Batches) -> "Objective":
        """The loss that the options ask for, on the device of `model`; class weights follow the training labels.

        `batches` say what they leave to do: to augment on a GPU, and to mix images that they borrowed (see `Mixing`).
        """
        device = next(model.parameters()).device
        weights = class_balance.weights(labels, classes) if config.balance == "loss" else np.ones(classes)
        frequencies = class_balance.frequencies(labels, classes)
        adjusted = frequencies if config.balance == "logits" else np.ones(classes)
        shares = np.full(classes, 1 / classes) if config.balance in ("sampler", "loss") else frequencies
        return cls(
            augment=BatchAugmentation(policy=batches.policy, rows=batches.rows, accumulate=config.accumulate),
            mix=Mixing(
                classes=classes,
                seed=config.seed,
                mixup=config.mixup,
                cutmix=config.cutmix,
                borrowed=batches.borrowed,
            ),
            class_weights=torch.tensor(weights, dtype=torch.float32, device=device),
            log_frequencies=torch.tensor(np.log(adjusted), dtype=torch.float32, device=device),
            label_smoothing=config.label_smoothing,
            smoothed_to=torch.tensor(shares, dtype=torch.float32, device=device),
            dtype=training_dtype(config, model),
        )

    def __call__(self, model: nn.Module, batch: Sequence[Tensor], *key: int) -> tuple[Tensor, Tensor]:
        """The sum of the images' losses and the number of correct predictions, both scalars on the device.

        `batch` is uint8 images `[batch, height, width, channels]` and int64 labels `[batch]`. `key` (epoch, step, part)
        decides how images are augmented and mixed.
        """
        device = self.class_weights.device
        images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        images, targets = self.mix(self.augment(images, *key), labels, *key)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits: Tensor = model(images)
        # Weights of `cross_entropy` would multiply what each class has of a smoothed label, not the image.
        weighted = targets * self.class_weights
        smoothed = torch.lerp(weighted, weighted.sum(1, keepdim=True) * self.smoothed_to, self.label_smoothing)
        loss = cross_entropy(logits.float() + self.log_frequencies, smoothed, reduction="sum")
        return loss, (logits.argmax(1) == targets.argmax(1)).sum()
