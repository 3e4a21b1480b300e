from pathlib import Path

import pytest

from training.errors import ConfigError
from training.options.config import TrainConfig
from training.study.config import STUDIES
from training.study.spec import document

TEXT = """
base: {model: mlp, hidden: [8]}
axes:
  activation: [relu, tanh]
  network:
    plain: {}
    normalised: {batch_norm: true}
seeds: 2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_every_combination_with_every_seed_once_and_named_by_what_differs(tmp_path: Path) -> None:
    study = document.read(write(tmp_path, TEXT))
    cells = study.cells()
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 2 * 2
    assert cells[0].name == "activation=relu,network=plain,seed=0"
    assert cells[0].options == {"model": "mlp", "hidden": (8,), "activation": "relu"}
    assert cells[-1].options == {"model": "mlp", "hidden": (8,), "activation": "tanh", "batch_norm": True}
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4, "what is made first can be compared"
    assert [(question.axis, question.measure) for question in study.questions] == [
        ("activation", "val_score"),
        ("network", "val_score"),
    ]


@pytest.mark.parametrize(
    ("given", "score"),
    [("{}", "balanced_accuracy"), ("{best_by: null}", "balanced_accuracy"), ("{best_by: log_loss}", "log_loss")],
)
def test_runs_of_several_models_are_compared_by_one_score_and_keep_an_open_rule(
    given: str, score: str, tmp_path: Path
) -> None:
    """An open --best-by is log_loss for the pretrained one alone, whose bias is fitted after training."""
    study = document.read(write(tmp_path, f"base: {given}\naxes:\n  model: [cnn, tf_efficientnet_lite0]\n"))
    assert [cell.score for cell in study.cells()] == [score] * 6
    assert {cell.options.get("best_by") for cell in study.cells()} == {None if score == "balanced_accuracy" else score}


def test_options_given_later_are_shared_and_those_of_an_axis_win(tmp_path: Path) -> None:
    cells = document.read(write(tmp_path, TEXT)).with_base({"epochs": 3, "activation": "gelu"}).cells()
    assert {cell.options["epochs"] for cell in cells} == {3}
    assert {cell.options["activation"] for cell in cells} == {"relu", "tanh"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "activation: [relu, tanh]",
            "activaton: [relu]",
            r"line 4: there is no option 'activaton'; there are data, .*",
        ),
        ("[relu, tanh]", "[relu, tahn]", "line 4: activation: Input should be 'relu', .* got 'tahn'"),
        ("batch_norm: true", "batchnorm: true", "line 7: there is no option 'batchnorm'"),
        ("batch_norm: true", "dropout: much", "line 7: dropout: .* got 'much'"),
        (
            "batch_norm: true",
            "dropout: 1",
            r"activation=relu,network=normalised,seed=0: --dropout: expected at least 0 and below 1",
        ),
        ("{model: mlp, hidden: [8]}", "{model: vit}", r"activation=relu,network=plain,seed=0: --model: .* got vit"),
        (
            "batch_norm: true",
            "best_by: log_loss",
            "best_by: expected the same for all runs, whose scores are compared, got balanced_accuracy, log_loss",
        ),
        ("{model: mlp, hidden: [8]}", "{seed: 3}", "line 2: seed is set by the study itself"),
        ("base:", "bse:", "line 2: there is no 'bse'; there are title, base, axes, seeds, questions"),
        ("seeds: 2", "seeds: two", "line 8: seeds: expected a number of 1 or more, got 'two'"),
        ("[relu, tanh]", "relu", "line 4: activation: expected a list of values"),
        ("[relu, tanh]", "[]", "line 4: activation: expected at least one level"),
        ("axes:", "axes: [", "not a YAML file"),
        (TEXT, "", "expected a study"),
        (TEXT, "seeds: 2", "expected axes"),
        (TEXT, "- a", "line 1: expected `name: value` pairs"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_line_with_the_choices(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(ConfigError, match=rf"^{path}(, |: ){expected}"):
        document.read(path)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("{ask: a, measure: val_score, axis: depth}", "expected one of activation, network, got 'depth'"),
        ("{ask: a, measure: speed, axis: network}", "expected one of val_score, .* got 'speed'"),
        ("{ask: a, axis: network}", "a question needs measure"),
        (
            "{ask: a, measure: gap, axis: network, compare: [plain, odd]}",
            "expected one of plain, normalised, got 'odd'",
        ),
        ("{ask: a, measure: gap, axis: network, compare: [plain]}", "compare: expected two levels, got 1"),
        ("{ask: a, measure: gap, axis: network, compare: plain}", "compare: expected a list"),
        ("{ask: a, measure: gap, axis: network, where: {activation: gelu}}", "expected one of relu, tanh, got 'gelu'"),
        ("{ask: a, measure: gap, axis: network, when: x}", "there is no 'when'; there are ask, measure"),
    ],
)
def test_a_question_that_the_grid_cannot_answer_is_refused_by_line(
    tmp_path: Path, question: str, expected: str
) -> None:
    path = write(tmp_path, f"{TEXT}questions:\n  - {question}\n")
    with pytest.raises(ConfigError, match=rf"^{path}, line 10: {expected}"):
        document.read(path)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("{}", "line 1: axes: expected one or more"),
        ("{network: {'lr / 3': {lr: 0.1}, 'lr * 3': {lr: 0.9}}}", "two levels give their runs one name, network=lr-3"),
    ],
)
def test_axes_that_make_no_runs_of_their_own_are_refused(tmp_path: Path, axes: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        document.read(write(tmp_path, f"axes: {axes}\n"))


def test_values_that_differ_in_the_seventh_digit_are_two_levels(tmp_path: Path) -> None:
    study = document.read(write(tmp_path, "axes: {lr: [0.00012345671, 0.00012345672, 0.1]}\n"))
    assert [*study.axes["lr"]] == ["0.00012345671", "0.00012345672", "0.1"]


def test_of_many_combinations_each_level_is_checked_once(tmp_path: Path) -> None:
    axes = {name: [round(0.1 + 0.01 * n, 2) for n in range(8)] for name in ("lr", "dropout", "mixup", "cutmix", "ema")}
    assert len(document.read(write(tmp_path, f"axes: {axes}\n")).some_cells(1)) == 1 + 5 * 7
    with pytest.raises(ConfigError, match=r"ema=1\.5.*--ema: expected at least 0 and below 1, got 1\.5"):
        document.read(write(tmp_path, f"axes: {axes | {'ema': [*axes['ema'], 1.5]}}\n"))


def test_questions_that_are_no_list_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, f"{TEXT}questions:\n  ask: a\n")
    with pytest.raises(ConfigError, match=rf"^{path}, line 10: questions: expected a list"):
        document.read(path)


def test_no_search_that_has_a_name_mixes_networks() -> None:
    """Of photographs, an open model is a backbone for the width that is the default, else the CNN."""
    for path in STUDIES.glob("search*.yaml"):
        assert {TrainConfig(**cell.options).model for cell in document.read(path).some_cells(0)} in (
            {"cnn"},
            {"tf_efficientnet_lite0"},
        )


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_have_a_name_can_be_read_and_written(path: Path, tmp_path: Path) -> None:
    study = document.read(path)
    assert study.seeds >= 3
    assert len(study.questions) >= 2
    assert document.read(write(tmp_path, document.to_yaml(study))) == study
