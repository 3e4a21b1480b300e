"""The optimizer, gradient clipping, and the learning rate schedule."""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from training.options.choices import ScheduleName
from training.options.settled import SettledConfig

MOMENTUM = 0.9

SHAPES: dict[ScheduleName, Callable[[int, int, int], float]] = {
    "cosine": lambda step, warmup, total: 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))),
    "constant": lambda step, warmup, total: 1.0,
    "step": lambda step, warmup, total: 0.1 ** ((step >= total / 2) + (step >= total * 3 / 4)),
}
"""Share of --lr at a step after the warm-up, of `total` steps: half a cosine to zero (Loshchilov and Hutter 2017),
all of it, or a tenth and a hundredth in the last two quarters (as He et al. 2016)."""


def make(model: nn.Module, config: SettledConfig) -> Optimizer:
    """The optimizer for all parameters that are not frozen; only weight matrices are decayed.

    AdamW (Loshchilov and Hutter 2019), Adam (Kingma and Ba 2015) or SGD with Nesterov's momentum (Sutskever et al.
    2013), each fused into one pass over the weights.
    """
    head = {id(parameter) for parameter in [model, *model.children()][-1].parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in learning if (id(p) in head) is of_head and (p.ndim > 1) is decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr": config.lr * (1 if of_head else config.body_lr),
        }
        for of_head in (False, True)
        for decayed in (True, False)
    ]
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=True, fused=True)
    return (AdamW if config.optimizer == "adamw" else Adam)(groups, lr=config.lr, fused=True)


def clip(model: nn.Module, most: float | None) -> Tensor:
    """Scale all gradients together down to the norm `most` where theirs is larger; returns what it was before."""
    norm = get_total_norm(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    if most is not None:
        clip_grads_with_norm_(model.parameters(), most, norm)
    return norm


def schedule(optimizer: Optimizer, config: SettledConfig, steps_an_epoch: int) -> LambdaLR:
    """The learning rate by step: a linear rise over the warm-up, then the shape of --schedule.

    All layers but the last stand still in the first --freeze-epochs.
    """
    total = config.epochs * steps_an_epoch
    warmup = min(round(config.warmup_epochs * steps_an_epoch), total // 2)
    frozen = config.freeze_epochs * steps_an_epoch
    shape = SHAPES[config.schedule]

    def head(step: int) -> float:
        return (step + 1) / warmup if step < warmup else shape(step, warmup, total)

    def body(step: int) -> float:
        return head(step) if step >= frozen else 0.0

    return LambdaLR(optimizer, [body, body, head, head])
