import csv
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from serving.contract.decode import as_channels, decode, pixel_digest
from tests.support.paths import SHARED
from training.data import duplicates
from training.data.duplicates import (
    FINGERPRINT,
    LEAST_SIMILARITY,
    TURNS,
    Duplicates,
    find,
    fingerprint,
)

HAM7 = SHARED / "data" / "ham7"
PLANTED = 200
RNG = np.random.default_rng(0)


def picture(seed: int, size: int = 120) -> np.ndarray:
    """Colour noise at several scales: no two alike, with detail that survives resizing."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.normal(0, 40, (side, side, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
        for side in (4, 12, 40)
    ]
    return np.clip(sum(layers, np.full((size, size, 3), 128.0)), 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    done, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return decode(encoded.tobytes())


def resized(pixels: np.ndarray, scale: float) -> np.ndarray:
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=interpolation)


def cropped(pixels: np.ndarray) -> np.ndarray:
    """Without 5 % of height and width, taken from a random side."""
    height, width = (round(0.95 * side) for side in pixels.shape[:2])
    top, left = (RNG.integers(0, side - part + 1) for side, part in zip(pixels.shape, (height, width), strict=False))
    return pixels[top : top + height, left : left + width]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copied": lambda pixels: pixels,
    "re-encoded": lambda pixels: jpeg(pixels, int(RNG.integers(50, 96))),
    "resized": lambda pixels: resized(pixels, float(RNG.uniform(0.4, 1.8))),
    "flipped": lambda pixels: jpeg(cv2.flip(pixels, int(RNG.integers(-1, 2))), 90),
    "turned": lambda pixels: jpeg(np.ascontiguousarray(np.rot90(pixels, int(RNG.integers(1, 4)))), 90),
    "cropped": lambda pixels: jpeg(cropped(pixels), 90),
}


def among(pictures: list[np.ndarray]) -> Duplicates:
    fingerprints = np.array([fingerprint(pixels) for pixels in pictures], FINGERPRINT)
    return find(fingerprints, [pixel_digest(pixels) for pixels in pictures])


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change: str) -> None:
    originals = [picture(seed) for seed in range(40)]
    found = among([*originals, *(CHANGES[change](pixels) for pixels in originals[:10])])
    assert {(pair.first, pair.second) for pair in found.pairs} == {(i, 40 + i) for i in range(10)}
    assert {pair.kind for pair in found.pairs} == {"exact" if change == "copied" else "near"}


@pytest.mark.parametrize(
    ("turn", "change"),
    [
        (lambda pixels: pixels[:, ::-1], "mirrored"),
        (lambda pixels: pixels[::-1], "flipped"),
        (lambda pixels: np.rot90(pixels, 1), "turned by 90"),
        (lambda pixels: np.rot90(pixels, 2), "turned by 180"),
        (lambda pixels: np.rot90(pixels, 3), "turned by 270"),
        (lambda pixels: pixels.transpose(1, 0, 2), "transposed"),
        (lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2), "transversed"),
    ],
)
def test_the_change_is_named(turn: Callable[[np.ndarray], np.ndarray], change: str) -> None:
    [pair] = among([*map(picture, range(20)), np.ascontiguousarray(turn(picture(3)))]).pairs
    assert (pair.first, pair.second) == (3, 20)
    assert pair.change.replace("turned by 270", "turned by 90") == change.replace("turned by 270", "turned by 90")
    assert pair.change in TURNS
    assert pair.similarity > 0.99


def test_gray_and_colour_copies_of_any_aspect_are_found() -> None:
    pictures = [resized(picture(seed), 1.0)[: 60 + seed] for seed in range(20)]
    gray = as_channels(pictures[5], 1)
    [pair] = among([*pictures, gray]).pairs
    assert (pair.first, pair.second, pair.kind) == (5, 20, "near")


def test_pictures_without_detail_are_only_the_same_when_their_pixels_are() -> None:
    flat = [np.full((50, 50, 3), value, np.uint8) for value in range(0, 200, 5)]
    found = among([*flat, flat[7]])
    assert [(pair.first, pair.second, pair.kind) for pair in found.pairs] == [(7, 40, "exact")]


def test_three_copies_are_a_chain_and_two_images_alone_are_compared_too() -> None:
    one, other = picture(1), picture(2)
    assert [(pair.first, pair.second) for pair in among([one, one, other, one]).pairs] == [(0, 1), (1, 3)]
    assert among([one, one]).pairs[0].kind == "exact"
    assert among([one, other]).pairs == ()
    assert among([one, resized(one, 0.5)]).pairs[0].kind == "near"
    assert among([one]).pairs == among([]).pairs == ()


def test_where_different_things_look_alike_more_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    shirt = picture(0, 28).astype(float)
    look_alikes = [np.clip(shirt + rng.normal(0, 25, shirt.shape), 0, 255).astype(np.uint8) for _ in range(60)]
    found = among([*look_alikes, look_alikes[4][:, ::-1].copy()])
    assert found.least_similarity > LEAST_SIMILARITY
    assert [(pair.first, pair.second, pair.change) for pair in found.pairs] == [(4, 60, "mirrored")]


@pytest.mark.skipif(not HAM7.exists(), reason="the shared data is not here")
@pytest.mark.long
def test_planted_pairs_among_real_images_are_found_and_no_others() -> None:
    with (HAM7 / "manifest.csv").open() as file:
        originals = [decode((HAM7 / row["path"]).read_bytes()) for row in csv.DictReader(file)]
    chosen = np.random.default_rng(1).permutation(len(originals))[: PLANTED * len(CHANGES)].reshape(-1, PLANTED)
    planted = [(change, int(i)) for change, indices in zip(CHANGES, chosen, strict=True) for i in indices]
    truth = {(i, len(originals) + k): change for k, (change, i) in enumerate(planted)}
    found = among([*originals, *(CHANGES[change](originals[i]) for change, i in planted)])
    hits = Counter(truth[pair.first, pair.second] for pair in found.pairs if (pair.first, pair.second) in truth)
    shares = {change: hits[change] / PLANTED for change in CHANGES}
    false = [pair for pair in found.pairs if (pair.first, pair.second) not in truth]
    print(shares, len(false), "false pairs")
    assert shares["copied"] == 1
    assert min(shares["re-encoded"], shares["resized"]) >= 0.98
    assert min(shares["flipped"], shares["turned"]) >= 0.95
    assert shares["cropped"] >= 0.8
    assert len(false) <= 2 * (len(originals) + len(planted)) / 1000


def test_candidates_in_a_graph_are_nearly_always_those_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """For more images than can be compared each with each; here 3,000, which both ways can."""
    pictures = np.random.default_rng(0).normal(size=(300, 100))
    noise = np.random.default_rng(1).normal(size=(3_000, 100))
    features = (np.repeat(pictures, 10, axis=0) + 0.2 * noise).astype(np.float32)
    every = {tuple(pair) for pair in duplicates._candidates(features).tolist()}
    monkeypatch.setattr(duplicates, "EXACT_AT_MOST", 2_999)
    threads = torch.get_num_threads()
    found = duplicates._candidates(features)
    assert torch.get_num_threads() == threads
    assert len(every - {tuple(pair) for pair in found.tolist()}) < 0.005 * len(every)
    assert np.array_equal(duplicates._candidates(features), found), "the splits depend on them"


def test_blank_images_hide_no_copies_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features without a difference are linked to one another alone: one in two hundred copies would be found."""
    pictures = np.random.default_rng(0).normal(size=(1_000, 100)).astype(np.float32)
    blank = np.zeros((300, 100), np.float32)
    monkeypatch.setattr(duplicates, "EXACT_AT_MOST", 99)
    near = {tuple(pair) for pair in duplicates._candidates(np.concatenate([blank, pictures, pictures])).tolist()}
    assert {(300 + i, 1_300 + i) for i in range(1_000)} <= near
    assert {(i, i + 1) for i in range(299)} <= near
    assert all(first < second < 2_300 for first, second in near)
