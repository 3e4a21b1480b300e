"""The side that answers: the contract, the model file, the service."""

import os

# Before anything imports ONNX Runtime, which otherwise writes an identifier of the machine under the home folder and
# reports to its makers over the network what is run.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
