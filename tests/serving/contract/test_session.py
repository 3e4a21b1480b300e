import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.contract import session
from serving.contract.model import ModelRefused, open_model
from serving.contract.session import CPU, CUDA, Placement, SessionError, open_session
from tests.support import cuda
from tests.support.paths import ROOT

REQUIRED = Placement(on="cuda")
WITHOUT_GPU = "a GPU is required, but "


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> cuda.Provider:
    """The stand-in for CUDA, in use."""
    provider = cuda.Provider()
    cuda.install(monkeypatch, provider)
    return provider


def test_a_gpu_is_used_and_tried_once_at_opening(run: Path, provider: cuda.Provider) -> None:
    classifier = open_model(run / "model.onnx", placement=Placement(gpu_mem_limit=2**30))
    assert classifier.on_gpu
    assert classifier.provider == CUDA
    goldens = len(classifier.card.goldens)
    assert provider.sizes == [1] * (1 + goldens)
    [options] = provider.options
    assert options == {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": str(2**30),
    }


def test_a_card_without_kernels_is_named_where_a_gpu_is_required(run: Path, provider: cuda.Provider) -> None:
    provider.fails = lambda images: cuda.NO_KERNEL
    with pytest.raises(ModelRefused) as refused:
        open_model(run / "model.onnx", placement=REQUIRED)
    reason = "this onnxruntime has no kernels for NVIDIA B200 (compute capability 10.0)"
    assert str(refused.value) == f"{run / 'model.onnx'}: {WITHOUT_GPU}{reason}"


def test_a_card_without_kernels_leaves_the_cpu_and_is_logged(
    run: Path, provider: cuda.Provider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.fails = lambda images: cuda.NO_KERNEL
    with caplog.at_level(logging.WARNING):
        classifier = open_model(run / "model.onnx")
    assert classifier.provider == CPU
    assert provider.sizes == [1]
    [message] = [record.message for record in caplog.records]
    assert message.startswith("the graph runs on the CPU, not on GPU 0: ")
    assert "compute capability 10.0" in message


def test_a_driver_that_is_too_old_leaves_the_cpu_and_is_logged(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without any device nothing is said."""
    cuda.install(monkeypatch, cuda.Provider(), cuda_version=12040)
    with caplog.at_level(logging.WARNING):
        assert not open_model(run / "model.onnx").on_gpu
    [message] = [record.message for record in caplog.records]
    assert message.endswith("CUDA 13 needs R580 or newer")
    caplog.clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with caplog.at_level(logging.WARNING):
        assert not open_model(run / "model.onnx").on_gpu
    assert caplog.records == []


def test_another_failure_of_the_first_run_is_quoted(run: Path, provider: cuda.Provider) -> None:
    provider.fails = lambda images: RuntimeError("an illegal instruction")
    with pytest.raises(ModelRefused, match=r"first run on NVIDIA B200 .* failed \(an illegal instruction\)"):
        open_model(run / "model.onnx", placement=REQUIRED)


def test_a_gpu_without_memory_is_no_verdict_on_the_graph(run: Path, provider: cuda.Provider) -> None:
    provider.fails = lambda images: RuntimeError("CUDA failure 2: out of memory")
    with pytest.raises(MemoryError, match=r"a GPU is required, but .* \(CUDA failure 2: out of memory\)"):
        open_model(run / "model.onnx", placement=REQUIRED)


@pytest.mark.parametrize("left_mib", [10, 100])
def test_too_little_memory_is_no_verdict_on_the_graph(left_mib: int) -> None:
    """ONNX Runtime fails with another class by how far it comes."""
    script = """if True:
        import resource, sys
        from onnx import TensorProto, helper
        from serving.contract.session import Placement, open_session

        side = 4096  # 64 MiB of weights
        weights = helper.make_tensor("w", TensorProto.FLOAT, [side, side], bytes(4 * side * side), raw=True)
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", side]) for name in "xy"]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        graph = helper.make_graph(nodes, "large", values[:1], values[1:], [weights])
        data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
        kept = [open_session(data, Placement(on="cpu"), 1)]
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
        for _ in range(100):
            kept.append(open_session(data, Placement(on="cpu"), 1))
    """
    command = [sys.executable, "-c", script, str(left_mib)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("MemoryError: too little memory to open the graph (")


def test_nodes_left_to_the_cpu_are_named_where_a_gpu_is_required(run: Path, provider: cuda.Provider) -> None:
    provider.leaves = {"Softmax", "Shape"}
    with pytest.raises(ModelRefused, match=f"{WITHOUT_GPU}these operators of the graph would run on the CPU: Softmax$"):
        open_model(run / "model.onnx", placement=REQUIRED)
    assert open_model(run / "model.onnx").on_gpu, "otherwise they may run there"
    provider.leaves = {"Shape", "Gather"}
    assert open_model(run / "model.onnx", placement=REQUIRED).on_gpu, "shapes belong on the CPU"


def test_onnxruntime_refuses_the_cpu_with_the_words_that_are_looked_for(run: Path) -> None:
    """Here it has no CUDA libraries, so every node would run on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match="assigned to the default CPU EP"):
        onnxruntime.InferenceSession(run / "model.onnx", options, providers=[CUDA])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(run / "model.onnx", options, providers=[CPU])
    parts: list[Any] = session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {CPU}
    assert "Softmax" in {node.op_type for part in parts for node in part.get_nodes()}


def test_eight_bits_have_the_sums_of_the_graph_on_every_cpu() -> None:
    """255 * 127 + 255 * 127 is more than 16 bits hold, in which CPUs without VNNI add pairs of products."""
    scales = {"image scale": np.float32(1), "weight scale": np.float32(1 / 2048), "scale": np.float32(1)}
    weights = np.full((8, 8, 1, 1), 127, np.int8)
    values = scales | {"weights": weights, "zero": np.uint8(0), "weight zero": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["images", "image scale", "zero"], ["floats"]),
        helper.make_node("DequantizeLinear", ["weights", "weight scale", "weight zero"], ["float weights"]),
        helper.make_node("Conv", ["floats", "float weights"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "scale", "zero"], ["bytes"]),
    ]
    kinds = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["b", 8, 4, 4]) for name in ("images", "bytes")]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "eight bits", kinds[:1], kinds[1:], constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    session = open_session(file, Placement(on="cpu"), threads=1)
    [sums] = session.run(None, {"images": np.full((1, 8, 4, 4), 255, np.uint8)})
    assert (sums == round(8 * 255 * 127 / 2048)).all()


@pytest.mark.parametrize("on", ["cpu", "cuda"])
@pytest.mark.usefixtures("provider")
def test_padding_of_one_side_stays_out_of_convolutions_on_a_gpu(
    on: Literal["cpu", "cuda"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"padding": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "weights": np.ones((1, 1, 3, 3), np.float32)}
    nodes = [
        helper.make_node("Pad", ["images", "padding"], ["padded"]),
        helper.make_node("Conv", ["padded", "weights"], ["sums"], strides=[2, 2]),
    ]
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, 6, 6]) for name in ("images", "sums")]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "padding", kinds[:1], kinds[1:], constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    options = session._options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    monkeypatch.setattr(session, "_options", lambda threads: options)
    open_session(file, Placement(on=on), threads=1)
    operators = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert operators & {"Pad", "Conv"} == ({"Pad", "Conv"} if on == "cuda" else {"Conv"})


@pytest.mark.parametrize(
    ("cards", "version", "number", "reason"),
    [
        ([], 13000, 0, "CUDA shows 0 devices, with no driver of NVIDIA; CUDA 13 needs R580 or newer"),
        ([cuda.CARD], 12040, 0, "CUDA shows 1 devices, with no driver of NVIDIA; CUDA 13 needs R580 or newer"),
        ([cuda.CARD], 13000, 1, "CUDA shows 1 devices, and number 1 is not among them"),
    ],
)
def test_a_device_that_is_not_there_is_refused_where_it_is_required(
    run: Path, monkeypatch: pytest.MonkeyPatch, cards: list[Any], version: int, number: int, reason: str
) -> None:
    cuda.install(monkeypatch, cuda.Provider(), cards=cards, cuda_version=version)
    with pytest.raises(ModelRefused, match=WITHOUT_GPU + reason):
        open_model(run / "model.onnx", placement=Placement(on="cuda", device_id=number))


def test_the_cpu_is_taken_where_it_is_asked_for(run: Path, provider: cuda.Provider) -> None:
    assert open_model(run / "model.onnx", placement=Placement(on="cpu")).provider == CPU
    assert provider.sizes == []


def test_a_file_that_is_no_graph_is_refused_on_a_gpu_too(provider: cuda.Provider) -> None:
    for placement in (Placement(), REQUIRED):
        with pytest.raises(SessionError, match="not a graph that onnxruntime can run"):
            open_session(b"no graph", placement, threads=1)


@pytest.mark.gpu
def test_a_real_gpu_has_the_options_and_gives_what_the_cpu_gives(run: Path) -> None:
    graph = (run / "model.onnx").read_bytes()
    session = open_session(graph, Placement(on="cuda", gpu_mem_limit=2**31), threads=1)
    options = session.get_provider_options()[CUDA]
    expected = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "gpu_mem_limit": str(2**31), "device_id": "0"}
    assert {name: options[name] for name in expected} == expected
    gpu, cpu = (open_model(run / "model.onnx", placement=Placement(on=on)) for on in ("cuda", "cpu"))
    images = np.random.default_rng(0).integers(0, 256, (64, 24, 24, 3), dtype=np.uint8)
    assert np.abs(gpu.predict(images) - cpu.predict(images)).max() < 1e-4
