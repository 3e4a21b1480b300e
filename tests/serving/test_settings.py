from pathlib import Path

import pytest

from serving.settings import Settings


def test_defaults_and_every_kind_of_value() -> None:
    assert Settings.from_env({}) == Settings()
    given = {
        "TWINLENS_MODEL": "/models/a.onnx",
        "TWINLENS_REQUIRE_GPU": "1",
        "TWINLENS_MAX_BATCH": "4",
        "TWINLENS_TIMEOUT_S": "0.5",
        "TWINLENS_RELOAD_S": "0",
        "TWINLENS_DRIFT_WINDOW": "500",
        "TWINLENS_ABSTAIN_BELOW": "0.8",
        "PATH": "/bin",
    }
    assert Settings.from_env(given) == Settings(
        model=Path("/models/a.onnx"),
        require_gpu=True,
        max_batch=4,
        timeout_s=0.5,
        reload_s=0.0,
        drift_window=500,
        abstain_below=0.8,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TWINLENS_MAX_BATCH", "many"),
        ("TWINLENS_MAX_BATCH", "0"),
        ("TWINLENS_WORKERS", "1.5"),
        ("TWINLENS_TIMEOUT_S", "nan"),
        ("TWINLENS_RELOAD_S", "-1"),
        ("TWINLENS_RELOAD_S", "nan"),
        ("TWINLENS_RELOAD_S", "inf"),
        ("TWINLENS_RELOAD_S", "never"),
        ("TWINLENS_DRIFT_WINDOW", "499"),
        ("TWINLENS_DRIFT_WINDOW", "1e3"),
        ("TWINLENS_REQUIRE_GPU", "yes"),
        ("TWINLENS_MAX_BYTE", "1"),
        ("TWINLENS_ABSTAIN_BELOW", "never"),
        ("TWINLENS_ABSTAIN_BELOW", "0"),
        ("TWINLENS_ABSTAIN_BELOW", "1"),
        ("TWINLENS_ABSTAIN_BELOW", "-0.5"),
        ("TWINLENS_ABSTAIN_BELOW", "nan"),
        ("TWINLENS_ABSTAIN_BELOW", "inf"),
    ],
)
def test_a_value_that_does_not_parse_stops_the_start_and_says_so(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings.from_env({name: value})
