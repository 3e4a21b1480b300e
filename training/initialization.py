"""How weights start."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import init

from training.config import Init

CONSTANT = 0.01
SPREAD = 0.05
METHODS: dict[Init, Callable[[Tensor], Tensor]] = {
    "constant": partial(init.constant_, val=CONSTANT),
    "uniform": partial(init.uniform_, a=-SPREAD, b=SPREAD),
    "normal": partial(init.normal_, std=SPREAD),
    "xavier_uniform": init.xavier_uniform_,
    "xavier_normal": init.xavier_normal_,
    "he_uniform": partial(init.kaiming_uniform_, nonlinearity="relu"),
    "he_normal": partial(init.kaiming_normal_, nonlinearity="relu"),
}
"""By fan-in and fan-out where the method looks at them: a convolution's are channels times the kernel's area."""


def initialize(model: nn.Module, method: Init) -> None:
    """Start the weights of all linear and convolutional layers by `method`, their biases at zero.

    `default` leaves everything as the layers made it. Normalisation layers are never touched, so that a residual block
    with batch normalisation adds nothing at first.
    """
    if method == "default":
        return
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            METHODS[method](layer.weight)
            if layer.bias is not None:
                init.zeros_(layer.bias)
