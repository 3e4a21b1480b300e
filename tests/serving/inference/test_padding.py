import numpy as np
import pytest

from serving.inference.padding import batch_sizes, padded


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (24, [1, 2, 4, 8, 16, 24]), (32, [1, 2, 4, 8, 16, 32])],
)
def test_sizes_are_powers_of_two_up_to_the_largest_batch(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes


def test_a_batch_is_filled_up_to_the_next_size_and_its_images_stay() -> None:
    images = np.random.default_rng(0).integers(1, 256, (32, 4, 4, 3), dtype=np.uint8)
    for number in range(1, 33):
        batch = padded(images[:number], 32)
        assert len(batch) in batch_sizes(32)
        assert number <= len(batch) < 2 * number
        assert np.array_equal(batch[:number], images[:number])
        assert not batch[number:].any()
