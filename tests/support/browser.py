"""How tests start the Chromium of this machine."""

import shutil

CHROMIUM = shutil.which("chromium")
# As root there is no sandbox to be had; the rest keeps Chromium from asking its makers for anything.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
