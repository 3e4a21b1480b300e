"""The initial weights of a network."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import init

from training.options.choices import Init

CONSTANT = 0.01
SCALE = 0.05
METHODS: dict[Init, Callable[[Tensor, float], Tensor]] = {
    "constant": lambda weight, scale: init.constant_(weight, CONSTANT),
    "uniform": lambda weight, scale: init.uniform_(weight, -scale, scale),
    "normal": lambda weight, scale: init.normal_(weight, std=scale),
    "xavier_uniform": lambda weight, scale: init.xavier_uniform_(weight),
    "xavier_normal": lambda weight, scale: init.xavier_normal_(weight),
    "he_uniform": lambda weight, scale: init.kaiming_uniform_(weight, nonlinearity="relu"),
    "he_normal": lambda weight, scale: init.kaiming_normal_(weight, nonlinearity="relu"),
}
"""By fan-in and fan-out where the method looks at them: a convolution's are channels times the kernel's area."""


def initialize(model: nn.Module, method: Init, *, scale: float = SCALE, zero_biases: bool | None = None) -> None:
    """Start the weights of all linear and convolutional layers by `method`, and their biases at zero.

    `default` leaves weights as the layers made them. Biases stay, too, when `zero_biases` is false, or is None with
    `default`. `scale` is the bound of `uniform` and the deviation of `normal`. Normalisation layers are never
    touched, so that a residual block with batch normalisation adds nothing at first.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            if method != "default":
                METHODS[method](layer.weight, scale)
            if layer.bias is not None and (method != "default" if zero_biases is None else zero_biases):
                init.zeros_(layer.bias)
