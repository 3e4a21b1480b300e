"""Consoles of every encoding."""

import io
import sys


def show_every_name() -> None:
    """Let a console of another encoding than UTF-8 show what it cannot encode as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
