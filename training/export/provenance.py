"""The provenance of a model: what is needed to train it again."""

import hashlib
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import torch
import yaml
from torch import nn

from serving.contract.card.provenance import Provenance
from serving.contract.decode import Digest
from training.engine import history
from training.engine.train_state import RunContext

RUNTIME = "onnxruntime" if sys.platform == "darwin" else "onnxruntime-gpu"
PACKAGES = ("torch", "albumentations", "opencv-python-headless", "numpy", "onnx", RUNTIME, "scikit-learn", "timm")

REVISION = "TWINLENS_REVISION"
"""Environment variable with the source revision of a container image, which holds no checkout."""


def collect(context: RunContext, weights_digest: Digest) -> Provenance:
    """Configuration, digests of data and weights, source revision, package versions and time (UTC).

    The content of an --augment file is included.
    """
    config, record = context.config, history.read(context.config.run)
    values = yaml.safe_load(config.to_yaml())
    if isinstance(config.augment, Path):
        from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

        values["augment"] = pipeline.content(config.augment)
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=values,
        data_digest=context.dataset.digest,
        checkpoint_digest=weights_digest,
        git_revision=context.revision,
        packages={name: _version(name) for name in PACKAGES},
        weights=record.weights if record else None,
        environment=environment(context.device, context.group.size),
    )


def digest_of_weights(model: nn.Module) -> Digest:
    """SHA-256 of name, shape, element type and bytes of each weight and buffer, in their order.

    A checkpoint's own digest would differ between runs of one seed: the file holds seconds and speeds, too.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return Digest(digest.hexdigest())


def environment(device: torch.device, processes: int) -> dict[str, str]:
    """What a result's last bits may depend on, the most likely first, and the interpreter and system of a run."""
    gpu = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if device.type == "cuda" else "none used"
    return {
        "threads": str(torch.get_num_threads()),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "GPU": gpu,
        "processes": str(processes),
        "cores": str(joblib.cpu_count()),
        "Python": platform.python_version(),
        "system": platform.platform(),
    }


def source_revision() -> str | None:
    """Revision of the image, or commit of this code, with `-dirty` if files were changed since; None without either."""
    if of_image := os.environ.get(REVISION):
        return of_image
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else an environment in another project's checkout
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 (the arguments are those above)
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
