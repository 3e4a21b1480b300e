"""The service: the contract with training, inference, the HTTP API, offline prediction."""

import os

# Set before ONNX Runtime is imported. Otherwise it writes an identifier of the machine to the home folder and reports
# its use to its makers over the network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
