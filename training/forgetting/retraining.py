"""Train again, on the data as it is now, the runs whose weights depend on images that were forgotten."""

from dataclasses import replace
from pathlib import Path

from serving.contract.objects import Location
from training.engine import runs
from training.forgetting.dependents import Dependent
from training.options.config import TrainConfig
from training.signals import Interruption
from training.train import train

AGAIN = "-again"


def retrain(
    found: list[Dependent], data: Location | None, latest: Path | None, interruption: Interruption | None
) -> dict[str, str]:
    """Train each again by its own options beside it, and return the names of the new runs by those of the old ones.

    `found` has those that others started from first. The one that `latest` led to is promoted if the rule of promotion
    holds, the others are not. A training that was stopped continues. Raises all that training raises.
    """
    made: dict[Path, Path] = {}
    for one in found:
        options = replace(runs.begun(one.run), data=data)
        if one.started_from is not None:
            options = replace(options, init_from=made[one.started_from])
        promoted = latest is not None and one.run.resolve() == latest
        options = replace(options, promote="better" if promoted else "never", resume=None)
        print(f"again  {one.run}", flush=True)
        made[one.run] = train(_placed(options, one.run), interruption)
    return {old.name: new.name for old, new in made.items()}


def _placed(options: TrainConfig, run: Path) -> TrainConfig:
    """The options with the name of a new run, or of one to continue."""
    number, name = 1, f"{run.name}{AGAIN}"
    while (run.parent / name).exists():
        if not runs.is_finished(run.parent / name):
            return replace(options, name=name, resume=str(run.parent / name))
        number += 1
        name = f"{run.name}{AGAIN}-{number}"
    return replace(options, name=name)
