"""Trains an image classifier and exports the model file that `serving` serves."""

import os

import serving  # noqa: F401  # first: it switches ONNX Runtime's telemetry off before that is imported

# Before Albumentations is imported, which otherwise asks the network for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
