"""The side that trains, and leaves what `serving` serves."""

import os

import serving  # noqa: F401  # first: what it says to ONNX Runtime holds for whoever imports that

# Before anything imports Albumentations, which otherwise asks the network for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
