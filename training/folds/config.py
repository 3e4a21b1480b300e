"""The options of `python -m training folds`: those of a training, and how often."""

from dataclasses import dataclass, fields

from training.engine.runs import MAY_CHANGE
from training.options.config import TrainConfig
from training.options.limits import require

CHANGE_NO_FOLD = MAY_CHANGE | {"out", "floor", "margin"}
"""Options that change nothing in a fold: where and how it is made, and those of the final model alone."""
FITTED = {"operate", "confidence_level", "sets", "unfamiliar", "costs"}
"""Options by which a fold's results change, but not the probabilities that its file gives."""


@dataclass(frozen=True, kw_only=True)
class FoldsConfig(TrainConfig):
    """Train on all of the data but one part, answer that part, and so on: every image is answered by a model that has
    not seen it. It takes as long as that many trainings.

    The same command continues what was stopped. Options are those of a training, for each of them.
    """

    folds: int | None = None
    """Parts of the data, each the test split of one training. None: 5."""
    leave_out: str | None = None
    """COLUMN: the parts are the images of each value of this column of the manifest, such as site or camera, so that
    no model has learned from the value that it is tested on."""
    final: bool = False
    """Afterwards train once more, on all images, up to the median of the folds' best epochs: the run <name>-final in
    --out, calibrated and scored by the folds' answers, and promoted by --promote."""
    jobs: int | None = None
    """Trainings at the same time. None: the number of GPUs, else as many as the cores allow."""
    threads: int = 1
    """Cores of each training. Another number may change the last digits of results; --jobs does not."""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option, the expected and the actual value."""
        super().__post_init__()
        require(self.folds is None or self.folds > 1, "folds", "2 or more", self.folds)
        both = self.folds is not None and self.leave_out is not None
        require(not both, "folds", "none beside --leave-out, whose values are the parts", self.folds)
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "1 or more", value)
        require(self.fold is None, "fold", "none, as all folds are made", self.fold)
        require(not self.final or self.quantize == "none", "quantize", "none beside --final", self.quantize)
        capped = self.final and self.images_per_class is not None
        require(not capped, "images_per_class", "none beside --final", self.images_per_class)
        require(self.final or not self.floor, "floor", "none without --final", self.floor)
        require(self.from_folds is None, "from_folds", "none, as the folds are made here", self.from_folds)
        require(self.resume is None, "resume", "none, as the same command continues", self.resume)

    @property
    def training(self) -> TrainConfig:
        """The options of each of the trainings, as the user gave them."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})
