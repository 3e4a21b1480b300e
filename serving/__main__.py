"""The container's command: `python -m serving [options of bentoml serve]`; with `serve` first, as SageMaker calls it.

With `check` first, it checks this machine instead (`serving.check`).

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

import os
import sys

SERVICE = "serving.service:Twinlens"
CONTAINER = {"BENTOML_HOST": "0.0.0.0"}  # noqa: S104 (the network decides which clients reach it)
SAGEMAKER = {"BENTOML_PORT": "8080", "TWINLENS_MODEL": "/opt/ml/model/model.onnx"}


def main(arguments: list[str]) -> None:
    """Replace this process by `bentoml serve` or by the check, so that signals reach it."""
    if arguments[:1] == ["check"]:
        os.execv(sys.executable, [sys.executable, "-m", "serving.check", *arguments[1:]])  # noqa: S606
    defaults = CONTAINER
    if arguments[:1] == ["serve"]:
        defaults, arguments = CONTAINER | SAGEMAKER, arguments[1:]
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, *arguments]
    os.execve(sys.executable, command, defaults | os.environ)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
