"""Builds the two images from the Dockerfiles and runs them with podman, where there is no Docker engine.

Nothing is pulled: debootstrap makes what stands in for the public base image, and the builds take packages from
wherever the pip of this machine takes them.
"""

import configparser
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

PROGRAMS = ("podman", "runc", "debootstrap")
BASE = "localhost/twinlens-base:latest"
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = Path("/etc/ssl/certs")
PIP_SETTINGS = {"cert", "find-links", "index-url", "timeout"}
# Podman's own default asks for limits that a container in a container may not set.
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
"""


def missing() -> str | None:
    """Why the images cannot be built here; None when they can."""
    if os.getuid() != 0:
        return "podman builds as root here"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def podman(*arguments: str | Path, check: bool = True, merge: bool = False, timeout: float = 600) -> str:
    """Run podman and give what it printed, with `merge` on both outputs; an error carries what it said."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as conf:
        conf.write(CONTAINERS_CONF)
        conf.flush()
        done = subprocess.run(
            ["podman", *map(str, arguments)],
            env=os.environ | {"CONTAINERS_CONF": conf.name},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    if check and done.returncode:
        raise AssertionError(f"podman {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + (done.stderr if merge else "")


def inspect(kind: str, name: str) -> dict[str, Any]:
    """What podman knows of an image, a container or a pod."""
    found = json.loads(podman(kind, "inspect", name))
    if isinstance(found, list):  # a pod comes without one
        [found] = found
    assert isinstance(found, dict)
    return found


def build_base(folder: Path) -> None:
    """Make the stand-in for the base image, once a machine."""
    if podman("images", "--quiet", BASE).strip():
        return
    root = folder / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, root],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=600,
    )
    archive = folder / "base.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    podman("import", "--change", f"ENV PATH={PATH}", archive, BASE)
    shutil.rmtree(root)
    archive.unlink()


def build(kind: str, image: str, **arguments: str) -> None:
    """Build Dockerfile.<kind> on the stand-in; its layers are podman's to keep."""
    given = {"BASE_IMAGE": BASE, **arguments}
    with _pip_configuration() as mounts:
        podman(
            "build",
            # Docker's format, because OCI's has no HEALTHCHECK.
            "--format=docker",
            "--isolation=chroot",
            "--network=host",
            *(f"--build-arg={name}={value}" for name, value in given.items()),
            *(f"--volume={path}:{inside}:ro" for path, inside in mounts.items()),
            f"--file={ROOT / f'Dockerfile.{kind}'}",
            f"--tag={image}",
            ROOT,
            timeout=1500,
        )


def remove_replaced() -> None:
    """Remove our images that a later build took the name from: 3 GB a build, and a full disk ends a build midway."""
    for kind in ("train", "serve"):
        podman("image", "prune", "--force", "--filter", f"label=org.opencontainers.image.title=twinlens {kind}")


@contextmanager
def _pip_configuration() -> Iterator[dict[Path, str]]:
    """What a build needs to install as this machine does, as mounts, which no image keeps.

    Pip's settings as one file, the folders of wheels they name, and the certificates.
    """
    listed = subprocess.run(["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = (line.partition("=") for line in listed.stdout.splitlines())
    settings = {name.rpartition(".")[2]: value.strip("'") for name, _, value in pairs}
    config = configparser.RawConfigParser()
    config["global"] = {name: value for name, value in settings.items() if name in PIP_SETTINGS}
    folders = [Path(word) for word in settings.get("find-links", "").split() if Path(word).is_dir()]
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        config.write(file)
        file.flush()
        inside = {folder: str(folder) for folder in [CERTIFICATES, *folders]}
        yield {Path(file.name): "/etc/pip.conf"} | inside
