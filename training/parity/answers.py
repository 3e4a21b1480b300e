"""Probabilities of the same images from everything that answers for a model: its run, torch, its file, a service."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
from tqdm import tqdm

from serving.contract.card.model_card import ModelCard
from serving.contract.model import Images
from training.data.selection import Selection
from training.engine import checkpoint
from training.errors import ConfigError
from training.metrics.classification import Probabilities
from training.models import prediction
from training.options.config import TrainConfig

CLIENTS = 4
"""Requests to a service at the same time: they fill its batches, and are far from its limits."""
TIMEOUT_S = 60


class TorchModel:
    """The network of a run's `best.pt` with the card's views and calibration: what the run evaluated."""

    def __init__(self, config: TrainConfig, path: Path, card: ModelCard) -> None:
        """Raises CheckpointRefused."""
        self.card = card
        self._model = checkpoint.restored(path, config, card)

    def predict(self, images: Images) -> Probabilities:
        """Uint8 images `[batch, height, width, channels]` to probabilities `[batch, classes]`, on the CPU."""
        return prediction.predict(self._model, images)


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service, asked as any client asks: the file's own bytes, one request an image."""

    url: str
    token: str | None = None

    def check(self, card: ModelCard) -> None:
        """Raise ConfigError when the service cannot be reached, or serves another model than that of the card."""
        self._check_version(self._get("/model")["version"], card)

    def answers(self, selection: Selection, card: ModelCard) -> Probabilities:
        """Probabilities `[images, classes]` of six decimals.

        Images that are in no file of their own are sent as PNG. Raises ConfigError when the service cannot be reached,
        refuses an image, or serves another version of the model.
        """
        places = {key: place for place, key in enumerate(selection.source.keys)}

        def ask(index: int) -> Sequence[float]:
            reply = self._get("/predict", _encoded(selection.source.read(places[selection.images.keys[index]])))
            self._check_version(reply["model_version"], card)
            return [reply["probabilities"][name] for name in selection.images.classes]

        with ThreadPoolExecutor(CLIENTS) as pool:
            replies = pool.map(ask, selection.indices.tolist())
            shown = tqdm(replies, "ask", len(selection.indices), unit=" images", disable=None, leave=False)
            return np.array(list(shown), np.float32)

    def _check_version(self, served: str, card: ModelCard) -> None:
        if served != card.version:
            raise ConfigError(f"--url {self.url}: serves version {served}, the file is version {card.version}")

    def _get(self, route: str, body: bytes | None = None) -> Any:
        """The JSON that a route answers; a body makes it a POST. Raises ConfigError."""
        headers = {"Content-Type": "application/octet-stream"} if body else {}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            request = Request(self.url.rstrip("/") + route, body, headers)  # noqa: S310
            with urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310
                return json.load(reply)
        except HTTPError as error:
            with error:
                shown = error.read(500).decode(errors="replace")
            raise ConfigError(f"--url {self.url}{route}: status {error.code}, {shown}") from error
        except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
            raise ConfigError(f"--url {self.url}: {getattr(error, 'reason', error)}") from error


def _encoded(content: bytes | np.ndarray) -> bytes:
    if isinstance(content, bytes):
        return content
    done, file = cv2.imencode(".png", content[..., ::-1] if content.ndim == 3 else content)
    assert done
    return bytes(file)
