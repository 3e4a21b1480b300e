"""SageMaker's contract for a training image: options, images and results in fixed places, `train` as the command.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo.html
"""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import yaml

from serving.contract.files.names import files_of
from training.engine import runs
from training.errors import ConfigError

ROOT = Path("/opt/ml")
PORT = 29500
"""Port of the first host, for the processes that train together; SageMaker leaves all ports between hosts open."""
RESULTS = (runs.CONFIG, runs.AUDIT, runs.PREDICTIONS, runs.PREDICTIONS_VAL, runs.REPORT)
"""The parts of a run that become model.tar.gz beside its model files; SageMaker keeps checkpoints in another place."""


def started(arguments: list[str], root: Path) -> bool:
    """Whether SageMaker started this process: as `train` without options, which are in files below `root`."""
    return arguments == ["train"] and (root / "input" / "config").is_dir()


def torchrun(root: Path, gpus: int) -> list[str]:
    """The command for a process on each of this host's `gpus`, on every host of resourceconfig.json.

    Empty where one process is enough. The first host in the list is where the processes meet. Raises ConfigError.
    """
    file = root / "input" / "config" / "resourceconfig.json"
    try:
        resources = json.loads(file.read_bytes()) if file.exists() else {"hosts": [""], "current_host": ""}
        hosts, number = resources["hosts"], resources["hosts"].index(resources["current_host"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: expected hosts and current_host, one of them ({error})") from error
    processes = max(1, gpus)
    if len(hosts) * processes == 1:
        return []
    sizes = [f"--nnodes={len(hosts)}", f"--node-rank={number}", f"--nproc-per-node={processes}"]
    meeting = [f"--master-addr={hosts[0] or '127.0.0.1'}", f"--master-port={PORT}"]
    return [sys.executable, "-m", "torch.distributed.run", *sizes, *meeting]


def options(root: Path) -> list[str]:
    """The command line that hyperparameters.json and the channels describe. Raises ConfigError, OSError.

    Hyperparameters are options by name, their values text as in YAML ("30", "[512, 128]", "true"). One channel holds
    the images, or one file that lists or holds them; several channels are the splits train, validation and test.
    A job that is stopped and started again, as on spot instances, resumes from /opt/ml/checkpoints.
    """
    file = root / "input" / "config" / "hyperparameters.json"
    try:
        values = json.loads(file.read_bytes()) if file.exists() else {}
        named = {name.replace("-", "_"): yaml.safe_load(str(value)) for name, value in values.items()}
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: expected options by name ({error})") from error
    checkpoints = root / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    config = checkpoints / ".hyperparameters.yaml"
    config.write_text(yaml.safe_dump(named))
    data = [] if (images := _images(root / "input" / "data")) is None else ["--data", str(images)]
    name = os.environ.get("TRAINING_JOB_NAME", "run")
    return ["--config", str(config), *data, "--out", str(checkpoints), "--name", name, "--resume", "auto"]


def finish(run: Path, root: Path) -> None:
    """Copy the results of a run to the folder that SageMaker makes model.tar.gz of, which an endpoint serves.

    A model to which `latest` did not move goes to output.tar.gz instead, from which nothing is served. Raises OSError.
    """
    promoted = (run.parent / runs.LATEST).resolve() == run.resolve()
    models = files_of(run)
    for path in (*models, *(run / name for name in RESULTS)):
        folder = root / "model" if promoted or path not in models else root / "output" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        elif path.exists():
            shutil.copyfile(path, folder / path.name)


def fail(reason: str, root: Path) -> None:
    """Write the reason to the file of which SageMaker shows the first 1,024 characters.

    Of the processes of a host the first to fail has the reason; those that lose it leave the file as it is. If the file
    cannot be written, the reason is in the log alone.
    """
    with suppress(OSError):
        (root / "output").mkdir(parents=True, exist_ok=True)
        with (root / "output" / "failure").open("x") as file:
            file.write(reason)


def _images(channels: Path) -> Path | None:
    folders = sorted(path for path in channels.iterdir() if path.is_dir()) if channels.is_dir() else []
    if len(folders) != 1:
        return channels if folders else None
    files = list(folders[0].iterdir())
    listing = [path for path in files if path.suffix.lower() in (".csv", ".npz")]
    return listing[0] if len(listing) == 1 else folders[0]
