"""The optimizer, gradient clipping, and the learning rate schedule."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from training.models import backbones
from training.options.choices import OptimizerName, ScheduleName
from training.options.settled import SettledConfig

KINDS: dict[OptimizerName, tuple[type[Optimizer], dict[str, Any]]] = {
    "adamw": (AdamW, {}),
    "adam": (Adam, {}),
    "sgd": (SGD, {"momentum": 0.9, "nesterov": True}),
}
"""The class of each --optimizer, and its own arguments."""

SHAPES: dict[ScheduleName, Callable[[int, int, int], float]] = {
    "cosine": lambda step, warmup, total: 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))),
    "constant": lambda step, warmup, total: 1.0,
    "step": lambda step, warmup, total: 0.1 ** ((step >= total / 2) + (step >= total * 3 / 4)),
}
"""Share of --lr at a step after the warm-up, of `total` steps: half a cosine to zero (Loshchilov and Hutter 2017),
all of it, or a tenth and a hundredth in the last two quarters (as He et al. 2016)."""


def without_compiler(kind: type[Optimizer]) -> type[Any]:
    """The same optimizer without the import of `torch._dynamo`, which takes a second or two at each start.

    PyTorch wraps these methods to exclude them from compilation, and imports its compiler for that. No optimizer is
    compiled here. The wrapper of `step` also switches gradients off, so that is done here.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


def make(model: nn.Module, config: SettledConfig) -> Optimizer:
    """The optimizer for all parameters that are not frozen; only weight matrices are decayed, and no positions.

    The first two groups are of the body, the others of the head.

    AdamW (Loshchilov and Hutter 2019), Adam (Kingma and Ba 2015) or SGD with Nesterov's momentum (Sutskever et al.
    2013), each fused into one pass over the weights.
    """
    head = {id(parameter) for parameter in [model, *model.children()][-1].parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = {id(parameter) for parameter in backbones.not_decayed(model)}
    groups = [
        {
            "params": [
                p for p in learning if (id(p) in head) is of_head and (p.ndim > 1 and id(p) not in kept) is decayed
            ],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr": config.lr * (1 if of_head else config.body_lr),
        }
        for of_head in (False, True)
        for decayed in (True, False)
    ]
    kind, options = KINDS[config.optimizer]
    stepper: Optimizer = without_compiler(kind)(groups, lr=config.lr, fused=True, **options)
    if kind is SGD:
        # The fused kernel allocates the averages in its first step, and does not fill them where float16 skips it.
        for parameter in learning:
            stepper.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return stepper


def of_body(optimizer: Optimizer) -> list[Tensor]:
    """What `make` has given the optimizer of all layers but the last."""
    return [parameter for group in optimizer.param_groups[:2] for parameter in group["params"]]


def clip(model: nn.Module, most: float | None) -> Tensor:
    """Scale all gradients together down to the norm `most` where theirs is larger; returns what it was before."""
    norm = get_total_norm(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    if most is not None:
        clip_grads_with_norm_(model.parameters(), most, norm)
    return norm


def schedule(optimizer: Optimizer, config: SettledConfig, steps_an_epoch: int) -> LambdaLR:
    """The learning rate by step: a linear rise over the warm-up, then the shape of --schedule.

    All layers but the last stand still in the first --freeze-epochs, after which they have a warm-up of their own.
    """
    total = config.epochs * steps_an_epoch
    warmup = min(round(config.warmup_epochs * steps_an_epoch), total // 2)
    frozen = config.freeze_epochs * steps_an_epoch
    shape = SHAPES[config.schedule]

    def head(step: int) -> float:
        return (step + 1) / warmup if step < warmup else shape(step, warmup, total)

    def body(step: int) -> float:
        return max(0.0, min(head(step), (step - frozen + 1) / max(warmup, 1)))

    return LambdaLR(optimizer, [body, body, head, head])
