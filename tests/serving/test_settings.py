import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serving.contract.drift import LIMIT
from serving.contract.session import Placement
from serving.settings import PREFIX, Settings
from tests.support import cuda
from tests.support.server import serving

# What Kubernetes adds to a container for a Service named `twinlens` with one named port.
KUBERNETES = {
    "TWINLENS_SERVICE_HOST": "10.0.0.1",
    "TWINLENS_SERVICE_PORT": "80",
    "TWINLENS_SERVICE_PORT_HTTP": "80",
    "TWINLENS_PORT": "tcp://10.0.0.1:80",
    "TWINLENS_PORT_80_TCP": "tcp://10.0.0.1:80",
    "TWINLENS_PORT_80_TCP_PROTO": "tcp",
    "TWINLENS_PORT_80_TCP_PORT": "80",
    "TWINLENS_PORT_80_TCP_ADDR": "10.0.0.1",
}


@pytest.fixture
def environment() -> Iterator[pytest.MonkeyPatch]:
    """The environment of this process, without settings and restored after the test."""
    with pytest.MonkeyPatch.context() as patch:
        for field in Settings.model_fields:
            patch.delenv(PREFIX + field.upper(), raising=False)
        yield patch


LIMITS = (
    "such as brightness=0.25,label=0.4, before it the model's version and a colon, "
    "numbers above 0 of brightness, contrast, width, height, label, confidence"
)


def test_limits_of_drift_hold_for_the_model_that_they_name(environment: pytest.MonkeyPatch) -> None:
    for version in ("1cc9e7341f50", "1cc9e7341f50-int8"):
        environment.setenv("TWINLENS_DRIFT_LIMITS", f"{version}:label=0.4")
        limits = Settings.from_env().drift_limits
        assert limits.of(version)["label"] == 0.4
        assert set(limits.of("0123456789ab").values()) == {LIMIT}
    environment.setenv("TWINLENS_DRIFT_LIMITS", "label=0.4")
    assert Settings.from_env().drift_limits.of("0123456789ab")["label"] == 0.4


def test_defaults_and_every_kind_of_value(environment: pytest.MonkeyPatch) -> None:
    fields = Settings.model_fields.items()
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields}
    defaults["drift_limits"] = {"version": None, "by_feature": {}}
    assert Settings.from_env().model_dump() == defaults
    values = {
        "TWINLENS_MODEL": "/models/a.onnx",
        "TWINLENS_REQUIRE_GPU": "1",
        "TWINLENS_GPU_MEM_LIMIT": "2000000000",
        "TWINLENS_WORKERS": "gpus",
        "TWINLENS_PROTECT_METRICS": "0",
        "TWINLENS_HOSTS": "Clinic.example, [::1]",
        "TWINLENS_TOKEN_FILE": "/run/tokens",
        "TWINLENS_MAX_BATCH": "4",
        "TWINLENS_TIMEOUT_S": "0.5",
        "TWINLENS_RELOAD_S": "0",
        "TWINLENS_DRIFT_WINDOW": "500",
        "TWINLENS_ABSTAIN_BELOW": "0.8",
        "TWINLENS_DRIFT_LIMITS": "brightness=0.4, label=1e-1",
    }
    for name, value in values.items():
        environment.setenv(name, value)
    assert Settings.from_env().model_dump() == defaults | {
        "model": Path("/models/a.onnx"),
        "require_gpu": True,
        "gpu_mem_limit": 2_000_000_000,
        "workers": "gpus",
        "hosts": {"clinic.example", "[::1]"},
        "token_file": Path("/run/tokens"),
        "max_batch": 4,
        "timeout_s": 0.5,
        "reload_s": 0.0,
        "drift_window": 500,
        "abstain_below": 0.8,
        "drift_limits": {"version": None, "by_feature": {"brightness": 0.4, "label": 0.1}},
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TWINLENS_MAX_BATCH", "many", "a whole number above 0"),
        ("TWINLENS_MAX_BATCH", "0", "a whole number above 0"),
        ("TWINLENS_WORKERS", "1.5", "a whole number above 0, or gpus"),
        ("TWINLENS_WORKERS", "0", "a whole number above 0, or gpus"),
        ("TWINLENS_GPU_MEM_LIMIT", "0", "a whole number above 0"),
        ("TWINLENS_PROTECT_METRICS", "yes", "0 or 1"),
        ("TWINLENS_TIMEOUT_S", "0", "a number above 0"),
        ("TWINLENS_TIMEOUT_S", "nan", "a number above 0"),
        ("TWINLENS_RELOAD_S", "-1", "0 or a number above 0"),
        ("TWINLENS_RELOAD_S", "nan", "0 or a number above 0"),
        ("TWINLENS_RELOAD_S", "inf", "0 or a number above 0"),
        ("TWINLENS_RELOAD_S", "never", "0 or a number above 0"),
        ("TWINLENS_NAME", "", "letters, digits, ., _ and -"),
        ("TWINLENS_NAME", "my model", "letters, digits, ., _ and -"),
        ("TWINLENS_NAME", "a/b", "letters, digits, ., _ and -"),
        *(
            ("TWINLENS_HOSTS", value, "names of hosts without a port, separated by commas, or *")
            for value in ("", "clinic.example:3000", "https://clinic.example", "a,,b", "[::1", "*.example")
        ),
        ("TWINLENS_HEALTH_ROUTE", "ping", "a path that begins with /"),
        ("TWINLENS_PREDICT_ROUTE", "/v1/{name}", "a path that begins with /"),
        ("TWINLENS_DRIFT_WINDOW", "499", "a whole number of at least 500"),
        ("TWINLENS_DRIFT_WINDOW", "1e3", "a whole number of at least 500"),
        ("TWINLENS_REQUIRE_GPU", "yes", "0, 1 or auto"),
        ("TWINLENS_REQUIRE_GPU", "true", "0, 1 or auto"),
        ("TWINLENS_REQUIRE_GPU", "", "0, 1 or auto"),
        ("TWINLENS_ABSTAIN_BELOW", "never", "a number above 0 and below 1"),
        ("TWINLENS_ABSTAIN_BELOW", "0", "a number above 0 and below 1"),
        ("TWINLENS_ABSTAIN_BELOW", "1", "a number above 0 and below 1"),
        ("TWINLENS_ABSTAIN_BELOW", "-0.5", "a number above 0 and below 1"),
        ("TWINLENS_ABSTAIN_BELOW", "nan", "a number above 0 and below 1"),
        ("TWINLENS_ABSTAIN_BELOW", "inf", "a number above 0 and below 1"),
        *(
            ("TWINLENS_DRIFT_LIMITS", value, LIMITS)
            for value in (
                "0.3",
                "colour=0.3",
                "label=0",
                "label=nan",
                "label=",
                "label=1=2",
                "label=1,label=2",
                ",",
                "v1:label=1",
            )
        ),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_and_expectation(
    environment: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(ValueError, match="expected") as refused:
        Settings.from_env()
    assert str(refused.value) == f"{name}={value!r}: expected {expected}"


@pytest.mark.parametrize(
    ("value", "cards", "on"),
    [("0", 1, "auto"), ("1", 0, "cuda"), ("1", 1, "cuda"), ("auto", 0, "auto"), ("auto", 2, "cuda")],
)
def test_a_gpu_is_required_always_never_or_where_one_is_visible(
    environment: pytest.MonkeyPatch, value: str, cards: int, on: str
) -> None:
    cuda.install(environment, cuda.Provider(), cards=[cuda.CARD] * cards)
    environment.setenv("TWINLENS_REQUIRE_GPU", value)
    environment.setenv("TWINLENS_GPU_MEM_LIMIT", "1000")
    assert Settings.from_env().placement(3) == Placement(on=on, device_id=3, gpu_mem_limit=1000)  # type: ignore[arg-type]


def test_every_setting_that_can_be_wrong_has_an_expectation() -> None:
    silent = {name for name, field in Settings.model_fields.items() if field.description is None}
    assert silent == {"cache", "token_file", "training_data"}, "any text is a path"


def test_metrics_are_not_protected_without_tokens(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TWINLENS_PROTECT_METRICS", "1")
    with pytest.raises(ValueError, match="PROTECT_METRICS=1: expected the accepted tokens in TWINLENS_TOKEN_FILE"):
        Settings.from_env()


def test_pictures_of_the_training_need_their_folder(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("TWINLENS_SHOW_TRAINING", "1")
    expected = "expected the folder of the training images in TWINLENS_TRAINING_DATA"
    with pytest.raises(ValueError, match=expected):
        Settings.from_env()
    environment.setenv("TWINLENS_TRAINING_DATA", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=rf"{expected}, not '.*none'"):
        Settings.from_env()
    environment.setenv("TWINLENS_TRAINING_DATA", str(tmp_path))
    assert Settings.from_env().training_data == tmp_path


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_batch = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TWINLENS_MAX_BYTE", "1"),
        ("TWINLENS_PORT", "8080"),
        ("TWINLENS_HOST", "10.0.0.1"),
        ("TWINLENS_SERVICE", "tcp://10.0.0.1:80"),
        ("TWINLENS_REPORT", "tcp://10.0.0.1:80"),
    ],
)
def test_an_unknown_name_is_refused(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}: no such setting; there are .*TWINLENS_MAX_BYTES"):
        Settings.from_env()


@pytest.mark.parametrize("service", ["TWINLENS", "TWINLENS_CANARY"])
def test_the_variables_of_a_kubernetes_service_are_no_settings(environment: pytest.MonkeyPatch, service: str) -> None:
    before = Settings.from_env()
    for name, value in KUBERNETES.items():
        environment.setenv(name.replace("TWINLENS", service, 1), value)
    assert Settings.from_env() == before


def test_the_service_starts_beside_a_kubernetes_service_of_its_name(run: Path, tmp_path: Path) -> None:
    environment: dict[str, Any] = KUBERNETES | {"BENTOML_HOME": str(tmp_path)}
    with serving(run / "model.onnx", **environment) as address:
        assert httpx.get(f"{address}/readyz").status_code == 200


def test_the_service_does_not_start_with_an_unknown_name(run: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="TWINLENS_MAX_BYTE: no such setting") as ended,
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(serving(run / "model.onnx", BENTOML_HOME=str(tmp_path), TWINLENS_MAX_BYTE="1"))
    assert "Traceback" not in str(ended.value)
