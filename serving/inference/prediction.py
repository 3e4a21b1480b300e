"""From the model's output for one image to its prediction: label, prediction set, probabilities by class.

The service and the batch scorer both use it. Nothing here knows HTTP, metrics or files.
"""

import math
from dataclasses import dataclass

import numpy as np

from serving.contract.card.model_card import ModelCard
from serving.contract.model import Answer, Answers

DECIMALS = 6
"""Decimals of a probability in a prediction: far finer than the contract's tolerance, and readable."""

OPTIONAL = ("decisions", "least_cost", "unfamiliar", "novelty")
"""Fields that answers of a model without them do not have."""


class InvalidOutput(RuntimeError):
    """The output of the model holds a value that is not a finite number."""

    code = "model_output_invalid"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction of one image; `probabilities` by class and `prediction_set`, most likely first.

    `abstained` means that a person should decide: the confidence is below the settings' `abstain_below`.
    The prediction set holds the true class with the model card's level of confidence; None when the model has none. It
    is empty for an unfamiliar image.
    `decisions` has, by class, the decision of each operating point of the card; None when the card has none.
    `least_cost` is the answer of the least expected cost, a class or another action; None when the card has no costs.
    `novelty` is the distance from the training images, and `unfamiliar` whether it is above the limit of the card's
    `familiarity`; both are None when the card has none.
    """

    label: str
    confidence: float
    abstained: bool
    prediction_set: list[str] | None
    probabilities: dict[str, float]
    model_version: str
    decisions: dict[str, bool] | None
    least_cost: str | None
    unfamiliar: bool | None
    novelty: float | None

    @property
    def body(self) -> dict[str, object]:
        """The prediction as the service answers it: fields of `OPTIONAL` only where the card makes them."""
        return {name: value for name, value in vars(self).items() if value is not None or name not in OPTIONAL}


def check_output(answers: Answer | Answers) -> None:
    """Raise InvalidOutput if any value of the model's output is not a finite number."""
    # For the few values of one image a list takes a quarter of the time of np.isfinite(...).all().
    total = sum(answers.probabilities.ravel().tolist())
    if answers.novelty is not None:
        total += float(np.sum(answers.novelty)) if isinstance(answers, Answers) else answers.novelty
    if not math.isfinite(total):
        raise InvalidOutput("the model gave a value that is not a number")


def describe(
    answer: Answer,
    card: ModelCard,
    *,
    top_k: int | None = None,
    abstain_below: float | None = None,
) -> Prediction:
    """`describe_batch` of one image. Raises InvalidOutput."""
    novelty = None if answer.novelty is None else np.array([answer.novelty], np.float32)
    answers = Answers(answer.probabilities[np.newaxis], novelty)
    [prediction] = describe_batch(answers, card, top_k=top_k, abstain_below=abstain_below)
    return prediction


def describe_batch(
    answers: Answers,
    card: ModelCard,
    *,
    top_k: int | None = None,
    abstain_below: float | None = None,
) -> list[Prediction]:
    """Name the most likely class of each image, with its `top_k` most likely classes (all when None).

    Probabilities and novelty are rounded to six decimals. Raises InvalidOutput.
    """
    check_output(answers)
    probabilities = answers.probabilities
    novelty = [None] * len(probabilities) if answers.novelty is None else answers.novelty.tolist()
    familiarity = card.familiarity
    sets = None if (included := card.prediction_sets(probabilities, answers.novelty)) is None else included.tolist()
    points = [(card.classes.index(point.label), point) for point in card.operating_points]
    least = None if card.costs is None else [card.costs.actions[index] for index in card.least_cost(probabilities)]
    predictions = []
    for row, (values, new) in enumerate(zip(probabilities.tolist(), novelty, strict=True)):
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        ranked = {card.classes[index]: round(values[index], DECIMALS) for index in order[:top_k]}
        label, confidence = next(iter(ranked.items()))
        prediction = Prediction(
            label=label,
            confidence=confidence,
            # The probability itself is compared, not its six decimals: the report computes its thresholds so.
            abstained=abstain_below is not None and values[order[0]] < abstain_below,
            prediction_set=None if sets is None else [card.classes[index] for index in order if sets[row][index]],
            probabilities=ranked,
            model_version=card.version,
            decisions={point.label: point.decides(values[index]) for index, point in points} if points else None,
            least_cost=None if least is None else least[row],
            unfamiliar=None if familiarity is None or new is None else familiarity.unfamiliar(new),
            novelty=None if new is None else round(new, DECIMALS),
        )
        predictions.append(prediction)
    return predictions
