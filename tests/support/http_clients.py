"""The HTTP clients that people upload with: each gives the status of the answer to a POST, or raises."""

import asyncio
import gc
import io
import os
import shutil
import subprocess
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping

import aiohttp
import httpx
import requests

WAIT_S = 30
NODE = """
const chunks = []; for await (const chunk of process.stdin) chunks.push(chunk);
const headers = JSON.parse(process.argv[2]);
const answer = await fetch(process.argv[1], {method: "POST", body: Buffer.concat(chunks), headers});
await answer.text(); console.log(answer.status);
"""

Headers = Mapping[str, str]
Client = Callable[[str, bytes, Headers], int]


def by_urllib(url: str, body: bytes, headers: Headers) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers)), timeout=WAIT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def by_requests(url: str, body: bytes, headers: Headers) -> int:
    return int(requests.post(url, data=body, headers=dict(headers), timeout=WAIT_S).status_code)


def by_httpx(url: str, body: bytes, headers: Headers) -> int:
    return httpx.post(url, content=body, headers=dict(headers), timeout=WAIT_S).status_code


def by_aiohttp(url: str, body: bytes, headers: Headers) -> int:
    async def post() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=io.BytesIO(body), headers=dict(headers)) as answer,
        ):
            await answer.read()
            return answer.status

    # aiohttp leaves the transport of an upload that was cut short to the collector of garbage, which complains of it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        status = asyncio.run(asyncio.wait_for(post(), WAIT_S))
        gc.collect()
    return status


def by_curl(url: str, body: bytes, headers: Headers) -> int:
    fields = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    command = ["curl", "-sS", "-o", os.devnull, "-w", "%{http_code}", *fields, "--data-binary", "@-", url]
    return int(subprocess.run(command, input=body, capture_output=True, timeout=WAIT_S, check=True).stdout)


def by_node(url: str, body: bytes, headers: Headers) -> int:
    words = httpx.Request("POST", url, json=dict(headers)).content.decode()
    command = ["node", "--input-type=module", "-e", NODE, url, words]
    return int(subprocess.run(command, input=body, capture_output=True, timeout=WAIT_S, check=True).stdout)


_CLIENTS: dict[str, Client] = {
    "urllib": by_urllib,
    "requests": by_requests,
    "httpx": by_httpx,
    "aiohttp": by_aiohttp,
    "curl": by_curl,
    "node": by_node,
}
CLIENTS = {name: client for name, client in _CLIENTS.items() if name not in ("curl", "node") or shutil.which(name)}
"""Those that this machine has."""
