"""The page at /ui: one document that includes its style and script, with headers that forbid to load anything else."""

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from serving.contract.formats.image_header import FORMATS, IMAGE_EXTENSIONS


@dataclass(frozen=True, kw_only=True)
class Page:
    """An HTML document and the headers of its response."""

    html: str
    headers: dict[str, str]

    @classmethod
    def load(cls) -> "Page":
        """Insert style, script and the accepted formats into page.html.

        Its Content-Security-Policy allows only the hashes of the first two.
        """
        html, style, script = (
            files("serving.api").joinpath(f"static/page.{kind}").read_text() for kind in ("html", "css", "js")
        )
        policy = {
            "default-src": "'none'",
            "script-src": _hash(script),
            "style-src": _hash(style),
            "img-src": "blob: data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        return cls(
            html=html.replace("ACCEPTED", ",".join(IMAGE_EXTENSIONS))
            .replace("FORMATS", FORMATS)
            .replace("/* page.css */", style)
            .replace("/* page.js */", script),
            headers={
                "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
                "Cache-Control": "no-cache",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )


def _hash(inline: str) -> str:
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    return f"'sha256-{digest}'"
