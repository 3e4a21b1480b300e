"""What a reply of the service says: an error's code, a metric's value."""

import httpx

from tests.support.paths import ROOT


def error(reply: httpx.Response) -> str:
    """The code in the one envelope of every error; its shape is checked on the way."""
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "request_id"}
    assert body["error"]["message"]
    assert "/" not in body["error"]["request_id"]
    assert str(ROOT) not in reply.text
    return body["error"]["code"]


def metric(text: str, metric_name: str, /, **labels: str) -> float:
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = (line for line in text.splitlines() if line.startswith((f"{metric_name}{{", f"{metric_name} ")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(part in line for part in wanted))
