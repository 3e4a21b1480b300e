"""Views: an image as it is, mirrored and turned; the model's answer is then the mean over them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from serving.contract.card.model_card import VIEWS, Views


class AveragedBody(nn.Module):
    """A network's body whose features are the mean over the views of each image, which must be square.

    The head is linear, so its logits are the mean over the views, too, and the probabilities are the geometric mean of
    those of the views, scaled to a sum of 1. So a bias and a temperature do to the mean what they do to each view, and
    the embedding is that of all views.
    """

    def __init__(self, body: nn.Module, views: Views) -> None:
        super().__init__()
        self.body = body
        self.views = views

    def forward(self, images: Float[Tensor, "batch channels side side"]) -> Float[Tensor, "batch features"]:
        shown = shown_in(self.views, images)
        features = self.body(torch.cat(shown))
        # A number, so that the exported graph has a constant in place of nodes that measure the features.
        return features.reshape(len(shown), -1, int(features.shape[1])).mean(0)  # type: ignore[no-any-return]


def shown_in(
    views: Views, images: Float[Tensor, "batch channels side side"]
) -> list[Float[Tensor, "batch channels side side"]]:
    """The images in each view, first as they are.

    `flips`: also mirrored from left to right. `turns`: mirrored both ways and turned by quarters, eight in all.
    """
    if views == "turns":
        return [
            each for one in (images, images.transpose(2, 3)) for each in (one, *map(one.flip, ((3,), (2,), (2, 3))))
        ]
    return [images, images.flip(3)] if views == "flips" else [images]


def average(model: nn.Sequential, views: Views) -> None:
    """Let `model`, of `networks.build`, answer by the mean over these views."""
    if views != "none":
        model[1] = AveragedBody(model[1], views)


def without(model: nn.Sequential) -> nn.Sequential:
    """The same network, with the same weights, that sees each image as it is."""
    return nn.Sequential(*(part.body if isinstance(part, AveragedBody) else part for part in model))


def count(model: nn.Module) -> int:
    """The number of views of each image that go through the body."""
    return max((VIEWS[module.views] for module in model.modules() if isinstance(module, AveragedBody)), default=1)
