"""What a load refuses: broken models, manifests that do not fit, missing runtimes, no pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edged import runners
from edged.engine_store import EngineStore
from edged.errors import EngineError, EngineRefusedError
from edged.recipe import InputSpec, OutputSpec
from edged.runners import input_specs, output_specs
from edged.runners.onnx import OnnxRunner
from edged.serve.models import ModelHost
from edged.settings import ServeSettings
from tests.doubles import engines
from tests.doubles.onnx_models import GraphWriter, mlp


def mlp_runner(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], model: bytes | None = None
) -> OnnxRunner:
    """A runner of the small network with these specs."""
    data = mlp().SerializeToString() if model is None else model
    return OnnxRunner(data, input_specs(inputs), output_specs(outputs), 4, threads=1)


X = InputSpec(name="x", datatype="FP32", shape=(12,))
Y = OutputSpec(name="last_out", shape=(3,))
ENDS = (("start", 0), ("stop", 1), ("axis", 0))


@pytest.mark.parametrize("model", [b"", b"garbage", mlp().SerializeToString()[:-40]])
def test_a_corrupt_model_is_refused(model: bytes) -> None:
    """Bytes that are no model are refused with a reason, whatever the runtime raises."""
    with pytest.raises(EngineRefusedError, match="ONNX Runtime cannot load"):
        mlp_runner((X,), (Y,), model)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((InputSpec(name="image", datatype="FP32", shape=(12,)),), (Y,)),
        ((X, InputSpec(name="more", datatype="FP32", shape=(1,))), (Y,)),
        ((X,), (OutputSpec(name="logits", shape=(3,)),)),
    ],
)
def test_wrong_names_are_refused(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]
) -> None:
    """A manifest that names other tensors than the model has is refused, and both are named."""
    with pytest.raises(EngineRefusedError, match=r"the model's (in|out)puts are"):
        mlp_runner(inputs, outputs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"),
    [
        ((InputSpec(name="x", datatype="FP32", shape=(11,)),), (Y,), "'x'"),
        ((InputSpec(name="x", datatype="FP32", shape=(3, 4)),), (Y,), "'x'"),
        ((InputSpec(name="x", datatype="FP64", shape=(12,)),), (Y,), "'x'"),
        ((X,), (OutputSpec(name="last_out", shape=(4,)),), "'last_out'"),
        ((X,), (OutputSpec(name="last_out", datatype="FP16", shape=(3,)),), "'last_out'"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], named: str
) -> None:
    """A manifest with another form than the model's is refused before a request meets it."""
    with pytest.raises(EngineRefusedError, match=named):
        mlp_runner(inputs, outputs)


def test_a_fixed_batch_axis_is_refused() -> None:
    """A model whose batch axis is fixed cannot run batches of other sizes."""
    model = mlp()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(EngineRefusedError, match="batch axis"):
        mlp_runner((X,), (Y,), model.SerializeToString())


def test_an_unknown_form_is_found_out_when_it_runs() -> None:
    """Where the model cannot say its output's form, a wrong manifest fails the batch instead."""
    graph = GraphWriter()
    first = graph.node("Slice", ["x", *(graph.constant(n, np.array([v])) for n, v in ENDS)])
    keep = graph.node("Squeeze", [graph.node("Greater", [first, "zero"]), "start"])
    graph.constant("zero", np.zeros(1, np.float32))
    chosen = graph.node("Compress", ["x", keep], "chosen", axis=1)
    model = graph.model({"x": ["batch", 12]}, {chosen: ["batch", "some"]})
    runner = mlp_runner((X,), (OutputSpec(name=chosen, shape=(3,)),), model.SerializeToString())
    three = np.array([[1.0] * 3 + [-1.0] * 9], np.float32)
    assert runners.run_batch(runner, {"x": three}).outputs[chosen].tolist() == [[1.0] * 3]
    with pytest.raises(EngineError, match="correct the recipe"):
        runners.run_batch(runner, {"x": -three})
    runner.close()


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("onnxruntime", "load(EngineStore(Path(sys.argv[1])).current('picker'))", "onnx"),
        ("pycuda", "fingerprint('tensorrt')", "cuda"),
    ],
)
def test_a_missing_runtime_is_refused_with_what_to_install(
    tmp_path: Path, module: str, call: str, extra: str
) -> None:
    """Without ONNX Runtime or pycuda an engine is refused with the line that installs it."""
    engines.install_picker(tmp_path, "picker")
    program = (
        f"import sys; sys.modules['{module}'] = None\n"
        "from pathlib import Path\n"
        "from edged.engine_store import EngineStore\n"
        "from edged.errors import EngineRefusedError\n"
        "from edged import runners\n"
        f"try:\n    runners.{call}\n"
        "except EngineRefusedError as err:\n    print(err.message)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert f"pip install 'edged[{extra}]'" in ended.stdout


@pytest.mark.parametrize(
    ("passed", "bound_to", "why"),
    [
        (False, None, "did not pass verification: it lost 3 of 10"),
        (True, {"runner": "onnx", "onnxruntime": "0.1", "arch": "vax"}, "another device"),
        (True, {}, ""),
    ],
)
def test_no_engine_is_loaded_without_a_pass_or_with_another_fingerprint(
    tmp_path: Path, *, passed: bool, bound_to: dict[str, str] | None, why: str
) -> None:
    """A manifest without a pass, or of another device or runtime, is refused before it is loaded.

    The last case is the control: the same engine with a pass and this device's fingerprint loads.
    """
    engines.install_picker(tmp_path, "picker", passed=passed, bound_to=bound_to)
    store = EngineStore(tmp_path)
    host = ModelHost(store, ServeSettings(onnx_threads=1))
    if not why:
        model = host.load("picker", lambda _where, _done, _total: None)
        assert model is not None
        assert model.curves["cpu"].sizes == (1, 4)
        model.close()
        return
    # The engine file is gone: had it been opened, the message would be another one.
    store.current("picker").path.unlink()
    with pytest.raises(EngineRefusedError, match=why):
        host.load("picker", lambda _where, _done, _total: None)
