"""The random changes of a batch as operations on tensors, for a GPU: no call for an image, no wait for the device."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from training.data.augmentation.draws import HUES, BatchPolicy, Draws

Images = UInt8[Tensor, "batch side side channels"]
Pixels = Float32[Tensor, "batch channels side side"]


@dataclass(frozen=True, kw_only=True)
class BatchAugmentation:
    """Changes the images of a step's batches on their device; leaves them alone without a policy.

    `rows` are the places in a batch of the images that this process gets.
    """

    policy: BatchPolicy | None
    rows: list[int]
    accumulate: int

    def __call__(self, images: Tensor, epoch: int, step: int, part: int) -> Tensor:
        """The images of batch `part` of a step, changed by draws that depend on the seed and these numbers alone."""
        if self.policy is None:
            return images
        return changed(images, self.policy.draw(epoch, step * self.accumulate + part).rows(self.rows))


def changed(images: Images, draws: Draws) -> Images:
    """The images after all changes. Values are rounded once, at the end, not after every change as in `opencv`."""
    oriented = _oriented(images, draws)
    if not (draws.affine | draws.lit | draws.cut | draws.colored).any():
        return oriented
    pixels = oriented.permute(0, 3, 1, 2).float()
    if draws.affine.any():
        [rows] = np.nonzero(draws.affine)
        pixels[_on(rows, pixels)] = _warped(pixels[_on(rows, pixels)], draws.matrix[rows])
    if draws.lit.any():
        contrast, brightness = (_column(numbers, pixels) for numbers in (draws.contrast, draws.brightness))
        pixels = (pixels * contrast + brightness).clamp(0, 255)
    if draws.cut.any():
        fill = _on(draws.fill, pixels).float()[:, :, None, None]
        pixels = torch.where(_inside(draws, pixels), fill, pixels)
    if draws.colored.any():
        [rows] = np.nonzero(draws.colored)
        shifts = [_column(numbers[rows], pixels) for numbers in (draws.hue, draws.saturation)]
        pixels[_on(rows, pixels)] = _colored(pixels[_on(rows, pixels)], *shifts)
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _on(numbers: np.ndarray, like: Tensor) -> Tensor:
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor


def _column(numbers: np.ndarray, like: Tensor) -> Tensor:
    return _on(numbers.astype(np.float32), like)[:, None, None, None]


def _oriented(images: Tensor, draws: Draws) -> Tensor:
    turned: Tensor
    for bit in (4, 2, 1):
        drawn = (draws.orientation & bit) > 0
        if drawn.any():
            turned = images.transpose(1, 2) if bit == 4 else images.flip(3 - bit)  # rows are dimension 1, columns 2
            images = torch.where(_on(drawn, images)[:, None, None, None], turned, images)
    return images


def _warped(pixels: Pixels, matrices: np.ndarray) -> Pixels:
    """`grid_sample` asks where each pixel of the result comes from, in coordinates from -1 to 1."""
    centre = (pixels.shape[-1] - 1) / 2
    inverse = np.linalg.inv(matrices[:, :, :2])
    origin = (inverse @ (centre - matrices[:, :, 2:]) - centre) / centre
    theta = np.concatenate([inverse, origin], 2).astype(np.float32)
    grid = affine_grid(_on(theta, pixels), list(pixels.shape), align_corners=True)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def _inside(draws: Draws, pixels: Pixels) -> Tensor:
    """Which pixels lie in the box of their image, `[batch, 1, side, side]`."""
    top, bottom, left, right = (_on(edges.copy(), pixels)[:, None] for edges in draws.box.T)
    place = torch.arange(pixels.shape[-1], device=pixels.device)
    down = (place >= top) & (place < bottom) & _on(draws.cut, pixels)[:, None]
    across = (place >= left) & (place < right)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _colored(pixels: Pixels, hue_shift: Tensor, saturation_shift: Tensor) -> Pixels:
    """Shift hue and saturation (Smith 1978); a gray pixel, which has no hue, stays gray."""
    value, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    spread = value - low
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    sector = torch.where(
        value == red,
        (green - blue) / spread,
        torch.where(value == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    hue = (HUES / 6 * sector.nan_to_num() + hue_shift) % HUES
    saturation = 255 * (spread / value).nan_to_num()
    saturation = torch.where(spread > 0, saturation + saturation_shift, 0).clamp(0, 255)
    offset = torch.arange(5.0, 0.0, -2.0, device=pixels.device)[None, :, None, None]  # made there, without a wait
    sixth = (offset + hue / (HUES / 6)) % 6
    return value * (1 - saturation / 255 * torch.minimum(sixth, 4 - sixth).clamp(0, 1))
