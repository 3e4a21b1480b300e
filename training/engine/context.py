"""What stays the same throughout a run."""

from dataclasses import dataclass

import torch

from serving.contract.card import Normalization
from training.data.dataset import Dataset
from training.distributed import Group
from training.settled import SettledConfig
from training.signals import Interruption


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The options and the data of a run, the device and the processes that train, and the signals that may stop it."""

    config: SettledConfig
    dataset: Dataset
    normalization: Normalization
    device: torch.device
    group: Group
    interruption: Interruption
