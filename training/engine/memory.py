"""A batch size that fits, for the message of a run that ran out of memory."""

import torch
from torch import nn

from training.device import training_dtype
from training.engine.train_state import RunContext

COPIES = 3
"""Copies of the weights beside the model: AdamW's two averages and the moving average of --ema."""


def fitting_batch(model: nn.Module, context: RunContext) -> int | None:
    """The largest half, quarter and so on of the batch whose step fits; None if none does.

    None also where the whole batch fits, because something else took the memory, with --freeze, where the features take
    it, and in a group on GPUs, where batch normalisation would wait for processes that have failed or try another size.
    The steps are tried, with what the failed one held already freed. The weights stay as they are; gradients are lost,
    and statistics of batch normalisation change.
    """
    if context.group.size > 1 and context.device.type == "cuda":
        return None
    size = min(context.config.batch_size, len(context.dataset.splits["train"]))
    if context.config.freeze or _fits(model, context, size):
        return None
    while size := size // 2:
        if _fits(model, context, size):
            return size
    return None


def _fits(model: nn.Module, context: RunContext, batch_size: int) -> bool:
    """Whether one step on so large a batch, shared by the processes of the group, has enough memory."""
    preprocessing, device = context.dataset.preprocessing, context.device
    shared = -(-batch_size // context.group.size)
    model.requires_grad_(True).zero_grad(set_to_none=True)  # also where the first epochs freeze some
    held: list[torch.Tensor] = []
    try:
        held += [torch.zeros_like(parameter) for parameter in model.parameters() for _ in range(COPIES)]
        images = torch.zeros(
            (shared, preprocessing.height, preprocessing.width, preprocessing.channels),
            dtype=torch.uint8,
            device=device,
        )
        dtype = training_dtype(context.config, model)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            logits = model.train()(images)
        logits.float().sum().backward()
    except (RuntimeError, MemoryError):  # PyTorch raises the former on CPUs, a subclass of it on GPUs
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True
