"""Options of runs on the pictures of bars of tests/serving/conftest.py."""

from typing import Any

OPTIONS: dict[str, Any] = {"model": "mlp", "hidden": (16,), "image_size": 16, "epochs": 6, "augment": "none"}
