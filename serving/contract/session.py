"""A session of ONNX Runtime: on a GPU that runs the graph, else on the CPU, and never on the CPU unnoticed."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from serving.contract import gpu
from serving.contract.gpu import Gpu

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA_OPTIONS = {
    # With TF32, the rounding error is larger than the tolerance of the golden examples.
    "use_tf32": "0",
    # The default, EXHAUSTIVE, measures every algorithm again whenever the shape of a batch changes: half a second for
    # five shapes (onnxruntime issue 23006).
    "cudnn_conv_algo_search": "HEURISTIC",
}
NOT_ON_CUDA = ("Pad_Fusion",)
"""It moves padding into convolutions. Where that is more on one side than on the other, as in EfficientNet-Lite0, cuDNN
has no kernel for some cards (onnxruntime issue 26274)."""
EIGHT_BITS = b"DequantizeLinear"
"""The operator of an eight-bit graph. CUDA computes such a graph in float, with other results than its card holds."""
SHAPES = {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity", "Mul", "Range"}
SHAPES |= {"Reshape", "Shape", "Size", "Slice", "Sqrt", "Squeeze", "Sub", "Unsqueeze", "Where"}
"""CUDA has kernels for these operators. ONNX Runtime runs them on the CPU only where they compute the shape of a
tensor, as a Vision Transformer's graph does, because shapes are there."""
NO_KERNELS = ("NoKernelImageForDevice", "no kernel image")
RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(runtime).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
"""What ONNX Runtime raises; the classes share no base of their own."""
RAISED: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, RuntimeError, ValueError, MemoryError)
"""By opening a graph, or running it."""
NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "out of memory")
"""Words in the messages of C++, of ONNX Runtime and of CUDA."""

log = logging.getLogger("bentoml.twinlens")


class SessionError(ValueError):
    """The graph cannot run, or not on the required device."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a graph runs. An eight-bit graph always runs on the CPU."""

    on: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU that runs the graph, else the CPU. `cuda` refuses the CPU, also for a part of the graph."""
    device_id: int = 0
    """Number of the GPU."""
    gpu_mem_limit: int | None = None
    """Bytes of the GPU for tensors and weights at most; None: all."""


def open_session(graph: bytes, placement: Placement, threads: int) -> onnxruntime.InferenceSession:
    """A session of a serialized graph, which has run once if it is on a GPU. Raises SessionError, MemoryError.

    It takes bytes, not a path, so that a graph with external data cannot read other files.
    """
    device, reason = _device(graph, placement)
    if device is not None:
        try:
            session = _open_on_cuda(graph, placement, threads)
            _run_once(session)
            return session
        except RAISED as error:
            reason = _explain(error, device)
            if placement.on == "cuda" and lacks_memory(error):
                raise MemoryError(f"a GPU is required, but {reason}") from error
    if placement.on == "cuda":
        raise SessionError(f"a GPU is required, but {reason}")
    if placement.on == "auto" and EIGHT_BITS not in graph and gpu.visible():
        log.warning("the graph runs on the CPU, not on GPU %d: %s", placement.device_id, reason)
    return _open(graph, [CPU], _options(threads))


def lacks_memory(error: Exception) -> bool:
    """Whether an error of ONNX Runtime says nothing about the graph: later it may run."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def _device(graph: bytes, placement: Placement) -> tuple[Gpu | None, str]:
    """The GPU to run on, or the reason for the CPU."""
    if EIGHT_BITS in graph:
        return None, "eight-bit files run on the CPU; serve the float32 file, or require no GPU"
    if placement.on == "cpu":
        return None, "the CPU was asked for"
    if CUDA not in onnxruntime.get_available_providers():
        return None, "this onnxruntime is built without CUDA"
    devices, cuda = gpu.gpus(), gpu.cuda_version()
    if not devices or cuda is None or cuda < gpu.NEEDED_CUDA:
        driver = gpu.driver_version()
        loaded = f"NVIDIA's driver {driver}" if driver else "no driver of NVIDIA"
        return None, f"CUDA shows {len(devices)} devices, with {loaded}; {gpu.NEEDED_DRIVER}"
    if placement.device_id >= len(devices):
        return None, f"CUDA shows {len(devices)} devices, and number {placement.device_id} is not among them"
    onnxruntime.preload_dlls()
    return devices[placement.device_id], ""


def _open_on_cuda(graph: bytes, placement: Placement, threads: int) -> onnxruntime.InferenceSession:
    """A session whose first provider is CUDA. Raises SessionError, and what ONNX Runtime raises."""
    limit = {} if placement.gpu_mem_limit is None else {"gpu_mem_limit": str(placement.gpu_mem_limit)}
    cuda = (CUDA, {"device_id": str(placement.device_id)} | CUDA_OPTIONS | limit)
    options = _options(threads)
    if placement.on == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            return _open(graph, [cuda], options, NOT_ON_CUDA)
        except SessionError as error:
            if "assigned to the default CPU EP" not in str(error):
                raise
        options = _options(threads)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = _open(graph, [cuda, CPU], options, NOT_ON_CUDA)
    if session.get_providers()[0] != CUDA:
        raise SessionError("onnxruntime could not load CUDA; its log says which library is missing")
    if placement.on == "cuda" and (on_cpu := _on_cpu(session)):
        raise SessionError(f"these operators of the graph would run on the CPU: {', '.join(sorted(on_cpu))}")
    return session


def _on_cpu(session: onnxruntime.InferenceSession) -> set[str]:
    """The operators of the graph that run on the CPU, but for those that compute shapes."""
    parts = session.get_provider_graph_assignment_info()
    return {node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes()} - SHAPES


def _run_once(session: onnxruntime.InferenceSession) -> None:
    """Run one black image. For a card without kernels the session opens, and its first run fails.

    A graph that takes no images is left to the check of its card.
    """
    inputs = session.get_inputs()
    if all(node.type == "tensor(uint8)" for node in inputs):
        shapes = {node.name: [side if isinstance(side, int) else 1 for side in node.shape] for node in inputs}
        session.run(None, {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()})


def _explain(error: Exception, device: Gpu) -> str:
    if isinstance(error, SessionError | MemoryError):
        return str(error)
    if any(words in str(error) for words in NO_KERNELS):
        return f"this onnxruntime has no kernels for {device}"
    return f"the graph's first run on {device} failed ({error})"


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait in a loop take cores from decoding, also when the server is idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Else sums of two products of eight bits stay within 16 on x86 CPUs without VNNI: a probability differed by 0.036.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options


def _open(
    graph: bytes, providers: list[object], options: onnxruntime.SessionOptions, without: Collection[str] = ()
) -> onnxruntime.InferenceSession:
    """`without` names optimizations of the graph that are left out."""
    try:
        return onnxruntime.InferenceSession(
            graph, options, providers=providers, enable_fallback=0, disabled_optimizers=set(without)
        )
    except Exception as error:  # ValueError and RuntimeError beside the classes of its own
        if lacks_memory(error):
            raise MemoryError(f"too little memory to open the graph ({error})") from error
        raise SessionError(f"not a graph that onnxruntime can run ({error})") from error
