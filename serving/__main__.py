"""The container's command: `python -m serving [options of bentoml serve]`; with `serve` first, as SageMaker calls it.

With `check` first, it checks this machine instead (`serving.check`). The variables of other platforms become settings:

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
https://cloud.google.com/run/docs/container-contract
https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

import os
import sys
from collections.abc import Mapping

SERVICE = "serving.service:Twinlens"
KEEP_ALIVE_S = 75
"""Seconds that an idle connection stays open. nginx and AWS close theirs after 60, and must be the first: a proxy that
sends a request while the service closes the connection answers 502. BentoML's default is 5."""
CONTAINER = {"BENTOML_HOST": "0.0.0.0"}  # noqa: S104 (the network decides which clients reach it)
CLOUD_RUN = {"PORT": "BENTOML_PORT"}
VERTEX_AI = {
    "AIP_HTTP_PORT": "BENTOML_PORT",
    "AIP_HEALTH_ROUTE": "TWINLENS_HEALTH_ROUTE",
    "AIP_PREDICT_ROUTE": "TWINLENS_PREDICT_ROUTE",
}
VERTEX_AI_MODEL = "AIP_STORAGE_URI"
"""A copy of the artifact folder that the model was uploaded with, such as gs://bucket/folder."""
SAGEMAKER = {"BENTOML_PORT": "8080", "TWINLENS_MODEL": "/opt/ml/model/model.onnx"}


def main(arguments: list[str]) -> None:
    """Replace this process by `bentoml serve` or by the check, so that signals reach it."""
    if arguments[:1] == ["check"]:
        os.execv(sys.executable, [sys.executable, "-m", "serving.check", *arguments[1:]])  # noqa: S606
    defaults = CONTAINER | _renamed(CLOUD_RUN) | _renamed(VERTEX_AI)
    if folder := os.environ.get(VERTEX_AI_MODEL):
        defaults["TWINLENS_MODEL"] = f"{folder.rstrip('/')}/model.onnx"
    if arguments[:1] == ["serve"]:
        defaults, arguments = defaults | SAGEMAKER, arguments[1:]
    # Of an option that is there twice, the last one counts.
    keep_alive = f"--timeout-keep-alive={KEEP_ALIVE_S}"
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, keep_alive, *arguments]
    os.execve(sys.executable, command, defaults | os.environ)  # noqa: S606


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    """The variables that a platform has set, by the names that are read here."""
    return {ours: os.environ[theirs] for theirs, ours in names.items() if theirs in os.environ}


if __name__ == "__main__":
    main(sys.argv[1:])
