"""Options of a training run that were written in a YAML file: read by name, each as its type."""

import json
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from training.errors import ConfigError
from training.options.config import TrainConfig

IGNORED = {"cnn": "hidden", "mlp": "width"}
"""By model, the option of the other network, which versions up to 0.3.0 accepted and did not use."""


def without_ignored(values: dict[str, Any]) -> dict[str, Any]:
    """The options of a run that may be of an older version, without that which it did not use."""
    ignored = IGNORED.get(values.get("model", ""))
    return {name: value for name, value in values.items() if name != ignored}


def from_yaml(path: Path, *, of_run: bool = False) -> TrainConfig:
    """Options from a YAML file, or from a run's `config.yaml`. Raises ConfigError naming file and key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: not a YAML file that can be read ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected options, `name: value` a line, got {values!r}")
    values = without_ignored(values) if of_run else values
    given = {key: option(key, value, f"--config {path}") for key, value in values.items()}
    try:
        return TrainConfig(**given)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from error


def option(name: str, value: object, where: str) -> Any:
    """The value of an option that was written in a file, as its type. Raises ConfigError beginning with `where`."""
    types = get_type_hints(TrainConfig, include_extras=True)
    if name not in types:
        raise ConfigError(f"{where}: there is no option {name!r}; there are {', '.join(types)}")
    return _typed(types[name], value, f"{where}: {name}")


def _typed(kind: Any, value: object, where: str) -> object:
    """The value as the type of its option; a truth value is no number, and no number is one."""
    try:
        # By way of JSON, because in it a list may become a tuple and a string a path.
        typed: object = TypeAdapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg']}, got {value!r}") from error
    if isinstance(value, bool) != isinstance(typed, bool):
        expected = "yes or no" if isinstance(typed, bool) else "a number"
        raise ConfigError(f"{where}: expected {expected}, got {value!r}")
    return typed
