import numpy as np
import pytest

from serving.contract.decode import Preprocessing, pixel_digest
from serving.contract.scene import Scene, decoded

DRAWN = {
    Scene(height=61, width=97, seed=0): "f91a104205201f20a1a560d8cef5f670d792f255f1d2f0a278ded40c2b701fdd",
    Scene(height=450, width=600, seed=3): "cf13a1e23f3ea3b86637c5df64ca35465ef47902e6fd0089e4ed7345ca4d4ca9",
}


@pytest.mark.parametrize(("scene", "digest"), DRAWN.items(), ids=str)
def test_a_scene_has_the_same_pixels_everywhere(scene: Scene, digest: str) -> None:
    """The digests were computed once: files in service depend on them."""
    assert pixel_digest(scene.draw()) == digest


def test_a_scene_has_gradients_edges_and_noise_in_every_channel() -> None:
    pixels = Scene(height=200, width=300, seed=5).draw().astype(int)
    for channel in range(3):
        values = pixels[:, :, channel]
        steps = np.abs(np.diff(values, axis=1))
        assert len(np.unique(values)) > 200
        assert (steps > 60).any()
        assert 0.5 < (steps < 8).mean() < 1


def test_a_scene_becomes_gray_as_an_image_does() -> None:
    scene = Scene(height=20, width=30, seed=1)
    gray = decoded(scene, Preprocessing(height=8, width=8, channels=1, interpolation="area"))
    assert gray.shape == (20, 30, 1)
