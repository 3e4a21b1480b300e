"""The pictures that are sent and the model that answers: made here, the same on every machine, nothing downloaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from serving.contract.model import ModelRefused, open_model

ROOT = Path(__file__).parent.parent.parent
CLASSES = 9
SIZES = {"small": (100, 120), "large": (450, 600)}
"""Height, width: with the quality and texture below, files of about 3.9 KB and 60 KB."""
JPEG_QUALITY = 90
TEXTURE = 8.0
TRAINING_PICTURES = 40
MODELS = {
    "mlp": ("--model", "mlp", "--hidden", "512", "128", "--image-size", "64", "--epochs", "6"),
    "cnn": ("--model", "cnn", "--image-size", "64", "--epochs", "6"),
    "lite0": (
        "--model",
        "tf_efficientnet_lite0",
        "--image-size",
        "224",
        "--freeze",
        "--epochs",
        "6",
        "--quantize",
        "int8",
    ),
    "large-cnn": ("--model", "cnn", "--width", "64", "--image-size", "128", "--epochs", "2"),
}


def picture(label: int, size: str, seed: int) -> bytes:
    """A JPEG as a camera would make it of skin with one mark on it, whose hue is the class `label` of 0 to 8.

    Its spectrum falls with frequency as that of photographs does, so it compresses and decodes like one.
    """
    height, width = SIZES[size]
    rng = np.random.default_rng([label, seed, height])
    y, x = np.mgrid[:height, :width] / height
    skin = np.array([205, 165, 140]) * (1 + 0.1 * (x - y))[..., np.newaxis]
    hue = np.array([[[label * 180 // CLASSES, 150, 130]]], np.uint8)
    mark = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
    centre_x, centre_y = rng.uniform(0.5, 0.7), rng.uniform(0.4, 0.6)
    edge = np.hypot(x - centre_x, y - centre_y) + _texture(rng, height, width) * 0.02
    inside = 1 / (1 + np.exp((edge - rng.uniform(0.22, 0.3)) * 40))[..., np.newaxis]
    pixels = skin * (1 - inside) + mark * inside + TEXTURE * _texture(rng, height, width)[..., np.newaxis]
    rgb = np.clip(pixels, 0, 255).astype(np.uint8)
    done, encoded = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return bytes(encoded)


def trained(kind: str, folder: Path) -> Path:
    """The model file of `kind`, one of MODELS; the project's own trainer makes it unless it is there."""
    model = folder / kind / "model.onnx"
    try:
        open_model(model)
    except ModelRefused:  # none yet, or of an older contract
        shutil.rmtree(folder / kind, ignore_errors=True)
        pictures = folder / "pictures"
        for label in range(CLASSES):
            (pictures / f"hue {label}").mkdir(parents=True, exist_ok=True)
            for seed in range(TRAINING_PICTURES):
                (pictures / f"hue {label}" / f"{seed}.jpg").write_bytes(picture(label, "small", seed))
        options = ["--data", str(pictures), "--out", str(folder), "--name", kind]
        subprocess.run([sys.executable, "-m", "training", *options, *MODELS[kind]], cwd=ROOT, check=True)
    return model


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of unit variance whose amplitude falls as 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, (height, width))
    return noise / noise.std()
