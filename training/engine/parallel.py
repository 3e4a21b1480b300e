"""One model trained by several processes: gradients and batch statistics are averaged over them."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.distributed import Group
from training.models import backbones


def broadcast_weights(model: nn.Module, group: Group) -> None:
    """Replace weights and statistics, on the CPU, by those of the first process, which alone reads pretrained ones."""
    if group.size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def wrap(model: nn.Sequential, group: Group) -> nn.Module:
    """The model as all processes train it: after each backward pass it holds the mean of their gradients.

    All start from the weights of the first process. On GPUs batch normalisation measures whole batches
    (SyncBatchNorm, which exists for GPUs only). Alone, it is the model itself.
    """
    if group.size == 1:
        return model
    device = next(model.parameters()).device
    if device.type != "cuda":
        return DistributedDataParallel(model, forward_sync_buffers=False)
    backbones.synchronize_statistics(model)
    return DistributedDataParallel(model, device_ids=[device.index], forward_sync_buffers=False)


def gradient_sync(model: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """The context of one forward and backward pass; not enabled, gradients add up in each process alone (`no_sync`).

    Enabled in the last batch of a step, it averages the sum of all its batches over the processes.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not enabled else nullcontext()


def average_gradients(model: nn.Module, group: Group) -> None:
    """Replace the gradients that there are by their mean over the processes."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient in gradients if group.size > 1 else ():
        dist.all_reduce(gradient)
        gradient /= group.size


def average_statistics(model: nn.Module, group: Group) -> None:
    """Replace the running statistics of batch normalisation by their mean over the processes.

    On CPUs each process measures its part of a batch; a mean of unbiased variances is unbiased. Frozen layers keep
    their statistics.
    """
    measured = [
        statistic
        for layer in model.modules()
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.training
        for statistic in (layer.running_mean, layer.running_var)
        if statistic is not None
    ]
    if group.size == 1 or not measured:
        return
    flat = torch.cat(measured)
    dist.all_reduce(flat)
    means = torch.split(flat / group.size, [len(statistic) for statistic in measured])
    for statistic, mean in zip(measured, means, strict=True):
        statistic.copy_(mean)
