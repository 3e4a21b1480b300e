import dataclasses
from pathlib import Path
from typing import Any, Literal

import joblib
import pytest
import yaml

from tests.support.configs import settled
from tests.support.trainer import command
from training.__main__ import main, options
from training.data.dataset import load_dataset
from training.distributed import ALONE
from training.errors import ConfigError
from training.options.choices import ScoreName
from training.options.config import TrainConfig
from training.options.config_file import from_yaml
from training.options.rules import in_vain
from training.options.settled import one_sided
from training.settling import decide_options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 0}, "--epochs: expected above 0, got 0"),
        ({"lr": -1.0}, "--lr"),
        ({"dropout": 1.0}, "--dropout"),
        ({"image_size": 4}, "--image-size: expected 8 or more, got 4"),
        ({"mean": (0.5,)}, "--mean and std"),
        ({"mean": (0.5,), "std": (0.5,)}, "of 3 number"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "together below 1"),
        ({"patience": 0}, "--patience"),
        ({"images_per_class": 0}, "--images-per-class: expected 1 or more, got 0"),
        ({"name": "../elsewhere"}, "--name"),
        ({"hidden": (512, 0)}, "--hidden"),
        ({"mixup": -0.1}, "--mixup: expected 0 or more, got -0.1"),
        ({"ema": 1.0}, "--ema: expected at least 0 and below 1, got 1.0"),
        ({"clip_norm": 0.0}, "--clip-norm: expected above 0, got 0.0"),
        ({"accumulate": 0}, "--accumulate: expected above 0, got 0"),
        ({"weight_decay": -1.0}, "--weight-decay: expected 0 or more"),
        (
            {"augment": Path("medium")},
            "--augment: expected none, light, strong or a file that ends in .yaml, .* got medium",
        ),
        ({"model": "cnn", "freeze": True}, "--freeze: expected --init-from or the pretrained weights of a timm"),
        ({"model": "resnet18", "freeze": True, "weights": "none"}, "--freeze: expected --init-from or"),
        (
            {"views": "flips", "symmetry": "none"},
            "--symmetry: expected mirror or square beside --views flips, .* none",
        ),
        ({"views": "turns", "symmetry": "mirror"}, "--symmetry: expected square beside --views turns, .* got mirror"),
        (
            {"model": "resnet18", "freeze": True, "augment": "light"},
            "--freeze: expected images that stay as they are, .* got --augment light",
        ),
        ({"freeze_epochs": 3, "epochs": 3}, "--freeze-epochs: expected fewer than the 3 epochs, got 3"),
        ({"freeze": True, "mixup": 0.1}, "--freeze: expected images that stay as they are, .* got --mixup 0.1"),
        ({"int8_agreement": 0.95}, "--int8-agreement: expected none without --quantize int8, got 0.95"),
        ({"quantize": "int8", "int8_agreement": 1.5}, "--int8-agreement: expected above 0 and at most 1, got 1.5"),
        ({"hidden": ()}, "--hidden: expected the width of one layer or more, got none"),
        ({"model": "cnn", "hidden": (64,)}, "--model: expected mlp beside --hidden, got cnn"),
        ({"model": "mlp", "width": 64}, "--model: expected cnn beside --width, got mlp"),
        ({"hidden": (64,), "width": 64}, "--width: expected none beside --hidden, of another network, got 64"),
        ({"seed": 2**32}, "--seed: expected 0 to 4294967295, got 4294967296"),
        ({"model": "resnet18", "width": 8}, "--model: expected mlp or cnn beside --width, got resnet18"),
        ({"model": "cnn", "weights": "default"}, "--weights: expected none beside --model cnn, got default"),
        ({"model": "cnn", "drop_path": 0.1}, "--drop-path: expected 0 beside --model cnn, got 0.1"),
        ({"weights": Path("w.pth")}, "--model: expected the architecture of the file of --weights, got auto"),
        ({"model": "resnet18", "weights": Path("w.onnx")}, "--weights: expected default, none or a file that ends in"),
        (
            {"model": "resnet18", "weights": "default", "init_from": Path("x")},
            "--weights: expected none beside --init-from",
        ),
        ({"model": "mlp", "batch_norm": True, "batch_size": 1}, "--batch-size: expected 2 or more with --batch-norm"),
    ],
)
def test_a_value_that_cannot_be_followed_is_refused_by_name(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        TrainConfig(**options)


def test_the_configuration_reads_back_from_yaml(tmp_path: Path) -> None:
    config = TrainConfig(
        data=Path("x"),
        hidden=(7, 8),
        augment=Path("own.yaml"),
        batch_norm=False,
        lr=1e-9,
        mean=(0.5,) * 3,
        std=(1.0,) * 3,
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    values = yaml.safe_load(path.read_text())
    assert set(values) == {field.name for field in dataclasses.fields(TrainConfig)} - {"name", "resume"}
    assert values["hidden"] == [7, 8]
    assert values["data"] == "x"
    assert from_yaml(path) == config
    path.write_text(TrainConfig().to_yaml())
    assert from_yaml(path) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3", r"there is no option 'epoch'; there are data, corrections, .*epochs"),
        ("model: 3", "model: Input should be a valid string, got 3"),
        ("epochs: ten", "epochs: Input should be a valid integer.* got 'ten'"),
        ("epochs: true", "epochs: expected a number, got True"),
        ("batch_norm: 1", "batch_norm: .* got 1"),
        ("hidden: 512", "hidden: Input should be a valid array, got 512"),
        ("balance: 2026-11-24", "balance: Input should be 'none', 'loss', 'logits', 'sampler' or 'bias'"),
        ("augment: 3", "augment: .* got 3"),
        ("epochs: 0", "--epochs: expected above 0, got 0"),
        ("- epochs", r"expected options, `name: value` a line, got \['epochs'\]"),
        ("", "expected options, `name: value` a line, got None"),
        ("epochs: [", "not a YAML file"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused_by_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^--config {path}: {expected}"):
        from_yaml(path)
    with pytest.raises(ConfigError, match=r"--config absent\.yaml: not a YAML file that can be read"):
        from_yaml(Path("absent.yaml"))


def test_numbers_in_the_file_may_be_written_as_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("lr: 1e-3\naugment: strong\nclip_norm: 1\n")
    config = from_yaml(path)
    assert (config.lr, config.augment, config.clip_norm) == (1e-3, "strong", 1.0)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("epochs: 7\nlr: 0.5\nbatch_norm: true\naugment: own.yaml\npatience: 3\nhidden: [4]\n")
    assert options("train", ["--config", str(path)]) == from_yaml(path)
    given = f"--epochs 2 --config={path} --no-batch-norm --augment light --patience None"
    assert options("train", given.split()) == dataclasses.replace(
        from_yaml(path), epochs=2, batch_norm=False, augment="light", patience=None
    )
    assert options("train", []) == TrainConfig()
    assert options("train", ["--batch-norm"]).batch_norm is True
    assert options("train", ["--augment", "a/b.json"]).augment == Path("a/b.json")


@pytest.mark.parametrize("given", [["--init-from", "runs/x"], ["--init-from=runs/x"]])
def test_weights_of_another_run_replace_those_of_a_file(given: list[str], tmp_path: Path) -> None:
    (path := tmp_path / "config.yaml").write_text("model: resnet18\nweights: default\nfreeze: true\n")
    config = options("train", ["--config", str(path), *given])
    assert (config.init_from, config.weights, config.pretrained) == (Path("runs/x"), None, False)
    assert options("folds", ["--config", str(path), *given]).weights is None
    with pytest.raises(SystemExit):
        options("train", ["--config", str(path), *given, "--weights", "default"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"views": "flips"}, "mirror"),
        ({"views": "turns"}, "square"),
        ({"views": "flips", "symmetry": "square"}, "square"),
        ({"views": "turns", "model": "resnet18"}, "square"),
        ({"views": "turns", "model": "resnet18", "freeze": True}, "none"),
        ({"views": "turns", "augment": Path("own.yaml")}, "none"),
    ],
)
def test_the_training_sees_what_views_show(given: dict[str, Any], expected: str) -> None:
    classes = ("cat", "dog")
    assert settled(TrainConfig(**given), image_size=64, training_images=300, classes=classes).symmetry == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"model": "resnet18"}, "flips"),
        ({"model": "resnet18", "symmetry": "square"}, "flips"),
        ({"model": "resnet18", "views": "none"}, "none"),
        ({"model": "resnet18", "symmetry": "none"}, "none"),
        ({"model": "resnet18", "augment": Path("own.yaml")}, "none"),
        ({"model": "resnet18", "freeze": True}, "none"),
        ({"model": "resnet18", "weights": "none"}, "none"),
        ({"model": "cnn", "symmetry": "mirror"}, "none"),
    ],
)
def test_a_fine_tuned_backbone_that_learned_mirror_images_answers_by_both(given: dict[str, Any], expected: str) -> None:
    classes = ("cat", "dog")
    assert settled(TrainConfig(**given), image_size=64, training_images=300, classes=classes).views == expected
    sided = settled(TrainConfig(**given | {"symmetry": None}), image_size=64, training_images=300, classes=("6", "9"))
    assert sided.views == "none"


def test_views_that_change_labels_are_refused() -> None:
    settle: dict[str, Any] = {"image_size": 8, "training_images": 300}
    with pytest.raises(ConfigError, match=r"--views: expected none, as a mirror .* class '6' means; --symmetry mirror"):
        settled(TrainConfig(views="flips"), classes=("6", "9"), **settle)
    assert settled(TrainConfig(views="flips", symmetry="mirror"), classes=("0", "8"), **settle).symmetry == "mirror"
    frozen = TrainConfig(model="resnet18", freeze=True, symmetry="none", views="flips")
    with pytest.raises(ConfigError, match=r"--views: expected none, .* class 'left lung' means, got flips"):
        settled(frozen, classes=("left lung", "heart"), **settle)


@pytest.mark.parametrize(
    ("best_by", "tuned", "untuned"),
    [
        (None, "bias", "sampler"),
        ("balanced_accuracy", "bias", "sampler"),
        ("macro_f1", "bias", "sampler"),
        ("roc_auc", "bias", "sampler"),
        ("log_loss", "bias", "none"),
        ("accuracy", "none", "none"),
    ],
)
def test_rare_classes_are_given_up_only_for_scores_in_which_they_count_less(
    best_by: ScoreName | None, tuned: str, untuned: str
) -> None:
    for model, expected in (("resnet18", tuned), ("cnn", untuned)):
        asked = TrainConfig(model=model, best_by=best_by)
        assert settled(asked, image_size=64, training_images=300).balance == expected


@pytest.mark.parametrize(("best_by", "said"), [("accuracy", True), ("roc_auc", False)])
def test_a_run_says_what_it_has_decided_and_what_changes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], best_by: ScoreName, said: bool
) -> None:
    config = TrainConfig(data=photos, out=tmp_path, model="mlp", image_size=16, best_by=best_by, fill=0)
    decide_options(config, load_dataset(config), None, ALONE)
    lines = capsys.readouterr().out.splitlines()
    line = "auto   --balance none (--best-by accuracy counts each image alike, whatever its class)"
    assert (line in lines) is said
    assert "warning: --fill 0 changes nothing beside --fit stretch, which leaves no border to fill" in lines


FROZEN = "beside --freeze, which trains the last layer on features that are computed once"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"freeze": True, "freeze_epochs": 2}, f"--freeze-epochs 2 changes nothing {FROZEN}"),
        ({"freeze": True, "body_lr": 0.1}, f"--body-lr 0.1 changes nothing {FROZEN}"),
        ({"freeze": True, "drop_path": 0.1}, f"--drop-path 0.1 changes nothing {FROZEN}"),
        ({"freeze_epochs": 2, "body_lr": 0.1, "drop_path": 0.1}, None),
        ({"best_epoch": 3, "patience": 2}, "--patience 2 changes nothing beside --best-epoch, which says when to stop"),
        (
            {"normalization": "image", "mean_std": "dataset"},
            "--mean-std dataset changes nothing beside --normalization image, which measures each image",
        ),
        ({"fit": "crop", "fill": 0}, "--fill 0 changes nothing beside --fit crop, which leaves no border to fill"),
        ({"fit": "pad", "fill": 0}, None),
        ({"epochs": 4, "warmup_epochs": 3}, "--warmup-epochs 3: the warm-up ends after half of the 4 epochs"),
        ({"epochs": 4, "warmup_epochs": 2}, None),
        ({"epochs": 1}, None),
        ({"model": "cnn", "freeze_epochs": 1}, "--freeze-epochs 1: the layers that stand still have random weights"),
        ({"model": "cnn", "freeze_epochs": 1, "init_from": Path("run")}, None),
        ({"freeze": True}, None),
        ({"model": "mlp"}, None),
    ],
)
def test_options_that_change_nothing_are_named(asked: dict[str, Any], said: str | None) -> None:
    config = TrainConfig(**({"model": "resnet18"} | asked))
    complete = settled(config, image_size=64, training_images=300, has_drop_path=True)
    assert [*in_vain(complete)] == ([] if said is None else [said])


def test_what_was_left_open_is_decided_and_what_was_given_is_kept() -> None:
    small = settled(TrainConfig(), image_size=64, training_images=300)
    assert (small.image_size, small.augment, small.batch_size, small.lr) == (64, "light", 16, 3e-3)
    assert settled(TrainConfig(), image_size=16, training_images=300).batch_size == 32
    assert small.balance == "sampler"
    assert settled(TrainConfig(best_by="accuracy"), image_size=64, training_images=300).balance == "none"
    assert settled(TrainConfig(balance="none"), image_size=64, training_images=300).balance == "none"
    large = settled(TrainConfig(model="mlp"), image_size=28, training_images=55_000)
    assert (large.augment, large.batch_size, large.lr, large.workers) == ("none", 64, 1e-3, 0)
    mirrored = settled(TrainConfig(model="mlp", symmetry="mirror"), image_size=28, training_images=55_000)
    assert mirrored.workers == 0, "whole batches are augmented where they are trained on"
    by_image = TrainConfig(model="mlp", symmetry="mirror", augment_on="workers")
    assert settled(by_image, image_size=28, training_images=55_000).workers == min(joblib.cpu_count() - 1, 8)
    given = TrainConfig(
        name="x",
        augment="strong",
        augment_on="workers",
        balance="loss",
        best_by="macro_f1",
        batch_size=7,
        lr=0.5,
        workers=3,
        image_size=32,
        batch_norm=False,
        symmetry="none",
        views="none",
        weight_decay=0.0,
        dropout=0.1,
        drop_path=0.0,
        label_smoothing=0.0,
        model="cnn",
        epochs=4,
    )
    assert dataclasses.asdict(settled(given, image_size=32, training_images=1000)) == dataclasses.asdict(given)
    tuned = settled(TrainConfig(model="resnet18"), image_size=128, training_images=1500)
    assert (tuned.weights, tuned.epochs, tuned.lr, tuned.augment, tuned.batch_norm) == (
        "default",
        10,
        1e-3,
        "strong",
        None,
    )
    assert tuned.symmetry == "mirror"
    assert (tuned.best_by, small.best_by) == ("log_loss", "balanced_accuracy")
    assert (tuned.balance, tuned.dropout, tuned.drop_path, tuned.label_smoothing) == ("bias", 0.2, 0.0, 0.1)
    assert (
        settled(TrainConfig(model="resnet18"), image_size=128, training_images=9, has_drop_path=True).drop_path == 0.2
    )
    plain = TrainConfig(model="resnet18", dropout=0.0, drop_path=0.0, label_smoothing=0.0, best_by="accuracy")
    plain = settled(plain, image_size=128, training_images=9, has_drop_path=True)
    assert (plain.balance, plain.dropout, plain.drop_path, plain.label_smoothing) == ("none", 0.0, 0.0, 0.0)
    scratch = settled(TrainConfig(model="resnet18", weights="none"), image_size=128, training_images=1500)
    assert (scratch.weights, scratch.epochs, scratch.dropout, scratch.balance) == ("none", 30, 0.0, "sampler")
    frozen = settled(TrainConfig(model="resnet18", freeze=True), image_size=128, training_images=1500)
    assert (frozen.augment, frozen.workers, frozen.dropout, frozen.balance) == ("none", 0, 0.0, "sampler")
    assert scratch.symmetry == frozen.symmetry == large.symmetry == "none"
    by_optimizer = {
        name: settled(TrainConfig(optimizer=name), image_size=16, training_images=9)
        for name in ("adamw", "adam", "sgd")
    }
    assert {name: (c.lr, c.weight_decay) for name, c in by_optimizer.items()} == {
        "adamw": (3e-3, 0.05),
        "adam": (3e-3, 0.0),
        "sgd": (0.05, 5e-4),
    }
    assert settled(TrainConfig(model="mlp", optimizer="sgd"), image_size=16, training_images=9).lr == 0.01
    norms: dict[Literal["mlp", "cnn"], bool] = {"cnn": True, "mlp": False}
    for kind, batch_norm in norms.items():
        assert settled(TrainConfig(model=kind), image_size=16, training_images=9).batch_norm == batch_norm


@pytest.mark.parametrize(
    ("classes", "sided"),
    [
        (["turn_left", "turn_right"], "turn_left"),
        (["cat", "RightHand"], "RightHand"),
        (["od", "os"], "od"),
        (["clockwise", "counter-clockwise"], "clockwise"),
        (["b", "d"], "b"),
        (["bright", "leftover", "nevus"], None),
        (["melanoma", "basal cell carcinoma", "10"], None),
    ],
)
def test_photographs_are_mirrored_unless_a_class_may_have_a_side(classes: list[str], sided: str | None) -> None:
    assert one_sided(classes) == sided
    tuned = settled(TrainConfig(model="resnet18"), image_size=128, training_images=900, classes=classes)
    assert tuned.symmetry == ("none" if sided else "mirror")


def test_help_shows_every_option_with_its_sentence() -> None:
    done = command("--help")
    assert done.returncode == 0
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in done.stdout
    assert "small residual" in done.stdout
    assert "--config FILE" in done.stdout
    assert "--no-batch-norm" in done.stdout


@pytest.mark.slow
def test_a_wrong_option_or_value_says_what_is_possible() -> None:
    done = command("--modle", "cnn")
    assert done.returncode == 2
    assert "--modle" in done.stderr
    assert "--model" in done.stderr
    done = command("train", "--model", "vit")
    assert done.returncode == 2
    assert "expected auto, mlp, cnn or an architecture of timm, got vit; near it are vit_" in done.stderr
    done = command("--epochs", "0")
    assert done.returncode == 2
    assert "expected above 0, got 0" in done.stderr


@pytest.mark.slow
def test_exit_codes(tmp_path: Path, photos: Path) -> None:
    out = ("--out", tmp_path / "runs")
    done = command("--data", tmp_path / "absent", *out)
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no such file or folder" in done.stderr
    done = command("--data", photos, "--lr", "1e30", "--model", "mlp", "--augment", "none", *out)
    assert done.returncode == 4, done.stderr
    assert "a lower --lr" in done.stderr
    assert not (tmp_path / "runs" / "latest").exists()
    done = command("--data", photos, "--device", "cuda", *out, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 8
    assert "--device cpu" in done.stderr
    (tmp_path / "runs" / "taken").mkdir()
    (tmp_path / "runs" / "taken" / "notes.txt").touch()
    done = command("--data", photos, "--name", "taken", *out)
    assert done.returncode == 2
    assert "taken" in done.stderr


def test_exit_codes_of_files_that_options_name(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "absent.yaml")]) == 2
    assert "error: --config" in capsys.readouterr().err
    common = ["--data", str(photos), "--out", str(tmp_path / "runs"), "--image-size", "16"]
    assert main([*common, "--augment", str(tmp_path / "absent.json")]) == 2
    assert "error: --augment" in capsys.readouterr().err
    assert main([*common, "--init-from", str(tmp_path)]) == 7
    assert "there is no such checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_written_is_noticed_before_any_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("--data", tmp_path / "absent", "--out", tmp_path / "file")
    assert done.returncode == 6, "absent data would have been 3"
    assert str(tmp_path / "file") in done.stderr
