from collections.abc import Callable

import httpx
import numpy as np
import pytest

from tests.support.wire import FORM, exchange, form, part, raw_form

NAMES = [
    "J\u00fcrgen.png".encode(),
    "J\u00fcrgen.png".encode("latin-1"),
    "\u56fe\u7247.png".encode("gbk"),
    "\u5199\u771f\u8868.png".encode("shift_jis"),
    "\u8868".encode("shift_jis"),  # its last byte is a backslash
    "\u0444\u043e\u0442\u043e.png".encode("koi8-r"),
    bytes(range(0x80, 0x100)),
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_file_name_may_be_in_any_encoding(server: str, png: Callable[..., bytes], name: bytes) -> None:
    sent = form(part(png(np.full((40, 40, 3), 90, np.uint8))))
    assert b"a.jpg" in sent
    reply = exchange(server, raw_form(sent.replace(b"a.jpg", name), FORM))
    assert reply.status == 200, reply.body


def test_a_field_name_in_utf8_is_shown_as_it_was_sent(server: str) -> None:
    reply = httpx.post(f"{server}/predict", files={"f\u00fcr": ("a.png", b"x")})
    assert "f\u00fcr" in reply.json()["error"]["message"]
