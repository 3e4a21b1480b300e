"""A batch size that fits, for the message of a run that ran out of memory."""

import torch
from torch import nn

from training.device import uses_bfloat16
from training.engine.train_state import RunContext


def fitting_batch(model: nn.Module, context: RunContext) -> int | None:
    """The largest half, quarter and so on of --batch-size whose forward and backward pass fit; None if none does.

    They are tried, so it takes as long as some steps. The weights stay as they are; the gradients are lost.
    """
    config, made = context.config, context.dataset.preprocessing
    size = config.batch_size // 2
    while size:
        model.zero_grad(set_to_none=True)
        try:
            shape = (size, made.height, made.width, made.channels)
            images = torch.zeros(shape, dtype=torch.uint8, device=context.device)
            with torch.autocast(context.device.type, torch.bfloat16, enabled=uses_bfloat16(config, model)):
                model.train()(images).float().sum().backward()
            return size
        except (RuntimeError, MemoryError):  # PyTorch raises the former on CPUs, a subclass of it on GPUs
            size //= 2
        finally:
            model.zero_grad(set_to_none=True)
    return None
