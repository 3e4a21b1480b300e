"""The line of the check about NCCL. As a module it is what each process of it runs: `torchrun -m` this."""

import subprocess
import sys

import torch
import torch.distributed as dist

from serving.contract.selfcheck import NO_GPU, Result, Skipped
from training.distributed import Group

TIMEOUT_S = 120
ELEMENTS = 2**22
"""Elements of the tensor that is added up: 16 MiB."""


def gpus_add_up() -> Result:
    """A process for each GPU; all add their tensors up by NCCL and have the right sum."""
    if not torch.cuda.is_available():
        raise Skipped(f"{NO_GPU}; processes on CPUs exchange by gloo")
    count = torch.cuda.device_count()
    printed = torchrun(count, "cuda")
    detail = printed if count > 1 else f"{printed}; one GPU shows nothing of the way between two"
    return Result(detail=detail, numbers={"gpus": float(count)})


def torchrun(processes: int, device: str) -> str:
    """Add up on devices of this type in as many processes; what the first one prints. Raises RuntimeError."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "training.check.collectives", device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        reasons = [line for line in done.stderr.splitlines() if "Error" in line] or ["torchrun failed"]
        raise RuntimeError(reasons[0].strip())
    return done.stdout.strip()


def add_up(device: torch.device) -> None:
    """In a process of torchrun: add up each process's number, refuse another sum, and print in the first."""
    group = Group.from_environment()
    if device.type == "cuda":
        device = torch.device("cuda", group.local_rank)
        torch.cuda.set_device(device)
    with group:
        if group.size == 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        numbers = torch.full((ELEMENTS,), float(group.rank + 1), device=device)
        dist.all_reduce(numbers)
        expected = group.size * (group.size + 1) / 2
        if not bool((numbers == expected).all()):
            raise RuntimeError(f"the sum over {group.size} processes is {float(numbers[0])}, not {expected}")
        print(f"{group.size} processes added up {ELEMENTS:,} values on {device.type}")
        if group.size == 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    add_up(torch.device(sys.argv[1]))
