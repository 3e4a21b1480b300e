"""The outputs of a model by the protocol: which there are, and their values."""

from collections.abc import Sequence

import numpy as np

from serving.contract.card.model_card import NOVELTY_NAME, OUTPUT_NAME, ModelCard
from serving.contract.model import Answer
from serving.inference.predictor import Predictor

LABELS, DECISIONS, LEAST_COST, UNFAMILIAR = "labels", "decisions", "least_cost", "unfamiliar"


def outputs_of(card: ModelCard) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By name, datatype and shape for one image of each output; what the card does not decide has none."""
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {
        OUTPUT_NAME: ("FP32", (len(card.classes),)),
        LABELS: ("BYTES", ()),
    }
    if card.operating_points:
        outputs[DECISIONS] = ("BOOL", (len(card.operating_points),))
    if card.costs is not None:
        outputs[LEAST_COST] = ("BYTES", ())
    if card.familiarity is not None:
        outputs |= {UNFAMILIAR: ("BOOL", ()), NOVELTY_NAME: ("FP32", ())}
    return outputs


def values_of(predictor: Predictor, answers: Sequence[Answer]) -> dict[str, np.ndarray | list[str]]:
    """By name, all outputs for these answers, which the metrics count; texts as lists."""
    predictions = [predictor.describe(answer) for answer in answers]
    return {
        OUTPUT_NAME: np.stack([answer.probabilities for answer in answers]),
        LABELS: [prediction.label for prediction in predictions],
        DECISIONS: np.array([list((prediction.decisions or {}).values()) for prediction in predictions], bool),
        LEAST_COST: [prediction.least_cost or "" for prediction in predictions],
        UNFAMILIAR: np.array([prediction.unfamiliar for prediction in predictions], bool),
        NOVELTY_NAME: np.array([answer.novelty for answer in answers], np.float32),
    }
