"""The model card of a run: all that the exported file says about itself."""

from torch import nn

from serving.contract.card.certificate import Certificate
from serving.contract.card.model_card import CONTRACT_VERSION, ModelCard
from training.engine.train_state import RunContext
from training.export import drift_reference, provenance
from training.export.goldens import goldens
from training.metrics import costs
from training.metrics.evaluation import Evaluation
from training.metrics.intervals.bootstrap import card_scores


def build_card(
    model: nn.Sequential,
    context: RunContext,
    evaluation: Evaluation,
    certificate: Certificate | None,
    statement: str | None,
) -> ModelCard:
    """The card of the calibrated `model`; `statement` says of which models the scores are, where not of this one."""
    config, dataset = context.config, context.dataset
    weights = provenance.digest_of_weights(model)
    return ModelCard(
        contract_version=CONTRACT_VERSION,
        name=config.run.name,
        version=weights[:12],
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        normalization=context.normalization,
        calibration=evaluation.calibration,
        goldens=goldens(model, dataset.preprocessing),
        scores=card_scores(evaluation.scores["test"], evaluation.intervals),
        reference=drift_reference.of_test_split(dataset, evaluation.probabilities["test"]),
        provenance=provenance.collect(context, weights),
        formats=dataset.image_set.formats,
        certificate=certificate,
        operating_points=evaluation.operating_points,
        costs=costs.read(config.costs, dataset.classes) if config.costs else None,
        statement=statement,
        familiarity=evaluation.novelty.familiarity if evaluation.novelty else None,
        neighbours=evaluation.novelty.index.digest if evaluation.novelty else None,
        views=config.views,
    )
