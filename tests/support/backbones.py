"""Architectures of timm that the tests are run on: the default one, and seven families."""

from training.data.input.sizing import BACKBONE

FAMILIES = (
    BACKBONE,
    "resnet18",
    "efficientnet_lite0",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "repvgg_a0",
)
