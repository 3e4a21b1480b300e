"""Where the model is from: data, options, code, machine, and the weights that training started from."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from serving.contract.decode import Digest


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """The weights that training started from, which others made."""

    architecture: str
    name: str
    """Name of the weights, such as `tf_efficientnet_lite0.in1k`, or of their file."""
    digest: Digest
    """SHA-256 of the file."""
    source: str
    """Package and version, repository and revision, or a path."""
    licence: str | None
    """None: the source states none."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to train the model again."""

    created: str
    """Time in UTC, as in ISO 8601."""
    config: dict[str, JsonValue]
    data_digest: Digest
    checkpoint_digest: Digest
    """Digest of the weights (`digest_of_weights`); in cards of versions 1 and 2, that of the checkpoint's file."""
    git_revision: str | None
    packages: dict[str, str]
    weights: PretrainedWeights | None = None
    """None: training started from random weights."""
    environment: dict[str, str] = field(default_factory=dict)
    """Interpreter, processor, threads, GPU and the like; empty in older cards."""
