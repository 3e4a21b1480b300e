"""Requests that the service refuses, each with its status and its code."""

import cv2
import numpy as np

JPEG = bytes(cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1])
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
BAD_REQUESTS = {
    "no file": ({"files": {"other": JPEG}}, 400, "missing_image"),
    "an empty form": ({"content": b"--x--\r\n", "headers": FORM}, 400, "missing_image"),
    "no body": ({"content": b"", "headers": {"Content-Type": "image/jpeg"}}, 400, "missing_image"),
    "no content type": ({"content": JPEG}, 415, "unsupported_media_type"),
    "an empty file": ({"files": {"image": b""}}, 400, "empty_image"),
    "text named .jpg": ({"files": {"image": ("a.jpg", b"hello", "image/jpeg")}}, 415, "unsupported_image_format"),
    "a truncated JPEG": ({"files": {"image": JPEG[: len(JPEG) // 2]}}, 422, "undecodable_image"),
    "JSON": ({"json": {"image": "/etc/hostname"}}, 415, "unsupported_media_type"),
    "a pickle": (
        {"content": b"cos\nsystem\n", "headers": {"Content-Type": "application/vnd.bentoml+pickle"}},
        415,
        "unsupported_media_type",
    ),
    "a text field": ({"data": {"image": "http://127.0.0.1:1/x"}, "files": {"x": b""}}, 400, "unexpected_field"),
    "only a text field": (
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nfile:///etc\r\n--x--\r\n',
            "headers": FORM,
        },
        400,
        "image_must_be_file",
    ),
    "two files": ({"files": [("image", JPEG), ("image", JPEG)]}, 400, "too_many_files"),
    "an unexpected field": ({"files": {"image": JPEG, "mask": JPEG}}, 400, "unexpected_field"),
    "no boundary": (
        {"content": b"--x--", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed_multipart",
    ),
    "another boundary": ({"content": b"--y\r\n\r\n--y--", "headers": FORM}, 400, "malformed_multipart"),
    "a form cut off": (
        {"content": b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nab', "headers": FORM},
        400,
        "malformed_multipart",
    ),
    "a part without name": (
        {"content": b"--x\r\nContent-Disposition: form-data\r\n\r\nab\r\n--x--\r\n", "headers": FORM},
        400,
        "malformed_multipart",
    ),
    "too many bytes": ({"files": {"image": bytes(300_000)}}, 413, "payload_too_large"),
    "one byte too many": (
        {"content": JPEG + bytes(200_001 - len(JPEG)), "headers": {"Content-Type": "image/jpeg"}},
        413,
        "payload_too_large",
    ),
    "gzip": ({"content": JPEG, "headers": {"Content-Encoding": "gzip"}}, 415, "content_encoding_not_supported"),
}
