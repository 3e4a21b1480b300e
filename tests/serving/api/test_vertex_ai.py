import base64

import pytest

from serving.api.errors import RequestError
from serving.api.vertex_ai import parse
from tests.support.peak import forget_peak, peak

SIZE = 4_000_000


@pytest.mark.parametrize("element", [b"[]", b'{"b64":""}'], ids=repr)
def test_json_of_many_small_values_is_refused_before_it_is_parsed(element: bytes) -> None:
    body = b'{"instances": [' + b",".join([element] * (SIZE // (len(element) + 1))) + b"]}"
    before = forget_peak()
    with pytest.raises(RequestError) as refused:
        parse(body, 32)
    assert (refused.value.status, refused.value.code) == (400, "malformed_instances")
    assert peak() - before < 20


def test_one_large_image_is_read() -> None:
    image = bytes(range(256)) * 40_000
    assert parse(b'{"instances": [{"b64": "%s"}]}' % base64.b64encode(image), 1) == ([image], None)
