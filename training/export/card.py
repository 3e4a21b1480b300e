"""The model card of a run: all that the exported file says about itself."""

from pathlib import Path

from torch import nn

from serving.contract.card import CONTRACT_VERSION, Certificate, ModelCard
from training.engine.train_state import RunContext
from training.export import drift_reference, provenance
from training.export.goldens import goldens
from training.metrics.bootstrap import card_scores
from training.metrics.evaluation import Evaluation
from training.storage import digest


def build_card(
    model: nn.Sequential, context: RunContext, evaluation: Evaluation, best: Path, certificate: Certificate | None
) -> ModelCard:
    """The card of the calibrated `model`; `best` is the checkpoint of its weights."""
    config, dataset = context.config, context.dataset
    return ModelCard(
        contract_version=CONTRACT_VERSION,
        name=config.run.name,
        version=digest(best)[:12],
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        normalization=context.normalization,
        calibration=evaluation.calibration,
        goldens=goldens(model, dataset.preprocessing),
        scores=card_scores(evaluation.scores["test"], evaluation.intervals),
        reference=drift_reference.of_test_split(dataset, evaluation.probabilities["test"]),
        provenance=provenance.collect(context, best),
        certificate=certificate,
    )
