"""The service with a guard taken away or a fault planted, named by MUTANT: tests of it must then fail.

Started by `bentoml serve tests.support.mutants:Twinlens`.
"""

import ctypes
import os
import pickle
import struct
import time
from typing import Any

import numpy as np
from starlette.requests import Request

from serving.api import upload
from serving.contract import decode as decoding
from serving.contract import model
from serving.contract.decode import Decoded
from serving.contract.formats import image_header
from serving.contract.formats.image_header import ImageError
from serving.inference import predictor

MARK = b"crash here"
PNG_END = struct.pack(">I4sI", 0, b"IEND", 0xAE426082)
SLOW_S = 1.5
LEAKED: list[bytes] = []


def pixel_limit() -> None:
    decoding._check_size = lambda *_: None


def byte_limit() -> None:
    read = upload.read_body
    upload.read_body = lambda request, most, *more: read(request, 2**40, *more)


def content_type() -> None:
    """A body of any kind is taken, and a pickle is what BentoML's own deserialiser makes of it."""
    files = upload.read_files

    async def read_files(request: Request, *more: Any, **limits: Any) -> list[bytes]:
        if "pickle" in request.headers.get("content-type", ""):
            return [str(pickle.loads(await request.body())).encode()]
        return await files(request, *more, **limits)

    upload.read_files = read_files


def claims() -> None:
    """A PNG is not walked through to its end."""
    chunks = image_header._chunks
    image_header._chunks = lambda data: chunks(data[:33] + PNG_END)


def scans() -> None:
    image_header.MAX_SCANS = 10**6


def segments() -> None:
    image_header.MAX_SEGMENTS = 10**9


def image_errors() -> None:
    """What the decoder raises comes through as itself."""

    def decode(data: bytes, *more: Any, **limits: Any) -> Decoded:
        try:
            return original(data, *more, **limits)
        except ImageError as error:
            raise RuntimeError("as an image library would") from error

    original = decoding.decode
    setattr(decoding, "decode", decode)  # noqa: B010


def leak() -> None:
    predict = predictor.Predictor.predict

    async def leaking(self: predictor.Predictor, *more: Any, **options: Any) -> object:
        LEAKED.append(os.urandom(100_000))
        return await predict(self, *more, **options)

    setattr(predictor.Predictor, "predict", leaking)  # noqa: B010


def slow() -> None:
    """A model that takes SLOW_S for a batch that is all black."""
    answers = model.Classifier.answers

    def slowly(self: model.Classifier, images: np.ndarray) -> model.Answers:
        if not images.any():
            time.sleep(SLOW_S)
        return answers(self, images)

    setattr(model.Classifier, "answers", slowly)  # noqa: B010


def crash() -> None:
    """A decoder that ends the process when it sees MARK."""
    original = decoding.decode

    def decode(data: bytes, *more: Any, **limits: Any) -> Decoded:
        if MARK in data:
            ctypes.string_at(0)
        return original(data, *more, **limits)

    setattr(decoding, "decode", decode)  # noqa: B010


# Before the service is imported, so that it finds what is left of its parts.
globals()[os.environ["MUTANT"]]()

from serving.service import Twinlens  # noqa: E402

__all__ = ["Twinlens"]
