"""What differs between two files and their trainings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from serving.contract.card.model_card import ModelCard
from serving.contract.model import open_model
from tests.support.forged_models import rewritten
from training.reproduction.comparison import differing_conditions, differing_results


@pytest.fixture
def card(run: Path) -> ModelCard:
    return open_model(run / "model.onnx").card


def test_the_last_bit_of_a_weight_counts_and_time_and_place_do_not(run: Path, tmp_path: Path, card: ModelCard) -> None:
    def changed(graph: onnx.ModelProto, values: dict[str, Any]) -> dict[str, Any]:
        tensor = graph.graph.initializer[-1]
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1).view("uint8")[0] ^= 1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return values

    file = run / "model.onnx"
    later = replace(card, name="other", certificate=None, provenance=replace(card.provenance, created="later"))
    copy = rewritten(file, tmp_path / "copy.onnx", lambda graph, values: values | {"name": "other"})
    assert differing_results((card, later), (file, copy)) == []
    assert differing_results((card, card), (file, rewritten(file, tmp_path / "bit.onnx", changed))) == ["graph"]
    weights = replace(card, provenance=replace(card.provenance, checkpoint_digest=card.provenance.data_digest))
    assert differing_results((card, weights), (file, file)) == ["weights"]
    assert differing_results((card, replace(card, goldens=card.goldens[1:])), (file, file)) == ["goldens"]


def test_conditions_are_named_with_both_values_the_likeliest_first(card: ModelCard) -> None:
    then = card.provenance
    assert differing_conditions(then, replace(then, created="later", config={})) == []
    now = replace(
        then,
        packages=then.packages | {"numpy": "1.0"},
        environment=then.environment | {"threads": "64", "GPU": "a new one"},
        git_revision="another",
    )
    found = differing_conditions(then, now)
    assert found == [
        f"numpy: {then.packages['numpy']} then, 1.0 now",
        f"threads: {then.environment['threads']} then, 64 now",
        "GPU: none used then, a new one now",
        f"source: {then.git_revision} then, another now",
    ]
    older = replace(then, environment={})
    assert differing_conditions(older, then)[0] == f"threads: not recorded then, {then.environment['threads']} now"
