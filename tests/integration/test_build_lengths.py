"""Builds of models with inputs of variable length: calibrated, verified and timed by length."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged import protocol
from edged.build.pipeline import build_model
from edged.cli import main
from edged.engine_store import GOLDEN_FILE, EngineStore
from edged.errors import BuildError
from edged.runners import fingerprint, load
from edged.serve.golden import check_golden
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.onnx_models import masked_net, unmasked_net
from tests.doubles.variable_folders import (
    BUCKETS,
    MOST,
    Floats,
    VariableFolders,
    answer,
    draw,
    variable,
)
from tests.doubles.wire import Ask, Message, WireClient


def ranges(folders: VariableFolders) -> dict[str, float]:
    """What calibration found: amax by tensor."""
    document = json.loads((folders.calib / "ranges.json").read_text())
    return {name: found["amax"] for name, found in document["tensors"].items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> VariableFolders:
    """`masked_net`, padded with large values, in INT8."""
    folders = variable(tmp_path_factory.mktemp("variable"), pad=1000.0)
    folders.build()
    return folders


def test_an_engine_is_built_verified_and_timed_at_each_length(built: VariableFolders) -> None:
    """INT8 inside, metrics of each bucket, a curve of each, and nothing to do a second time."""
    manifest = EngineStore(built.root / "engines").current("toy").manifest

    assert manifest.precision == "int8"
    assert "middle" in manifest.quantized
    metrics = manifest.verdict.metrics
    assert [metrics[f"samples@{length}"] for length in (*BUCKETS, MOST)] == [24, 24, 24]
    assert all(metrics[f"sqnr_db@{length}"] > 20 for length in (*BUCKETS, MOST))
    assert set(manifest.shorter_latency_ms) == {"4", "8"}
    assert set(manifest.latency_ms) == set(manifest.shorter_latency_ms["4"]) == {"1", "2", "4"}
    assert not built.build().changed


def test_the_simulator_knows_each_length(
    built: VariableFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--model toy@4` takes the times that were measured there; of 5 there are none."""
    asked = [
        "simulate",
        "--engines",
        str(built.root / "engines"),
        "--rate",
        "9",
        "--requests",
        "100",
    ]
    manifest = EngineStore(built.root / "engines").current("toy").manifest
    times = manifest.shorter_latency_ms["4"]

    assert main([*asked, "--json", "--model", "toy@4"]) == 0
    told = json.loads(capsys.readouterr().out)
    best = max(int(size) / (ms / 1e3) for size, ms in times.items())
    assert told["most_requests_s"] == pytest.approx(best, rel=0.01)

    assert main([*asked, "--model", "toy@5"]) == 2
    assert "no times of length '5' are known, only of 4, 8, 12" in capsys.readouterr().err


def test_padding_has_no_part_in_the_ranges_where_there_is_a_mask(
    built: VariableFolders, tmp_path: Path
) -> None:
    """They are the same for another padding, and small, although it is 1000."""
    plain = variable(tmp_path)
    plain.build()

    assert ranges(built) == ranges(plain)
    assert max(ranges(built).values()) < 100


def test_padding_is_in_the_ranges_where_the_model_computes_with_it(tmp_path: Path) -> None:
    """Without a mask it is data to the model, in calibration as in serving."""
    folders = variable(tmp_path, unmasked_net(), pad=50.0)
    folders.build()

    assert max(ranges(folders).values()) > 50
    assert "padding_sqnr_db" not in _metrics(folders)


def test_a_mask_that_is_applied_leaves_the_answers_as_they_are(built: VariableFolders) -> None:
    """The FP32 model gives the same with and without padding, by the build's own account."""
    assert _metrics(built)["padding_sqnr_db"] > 100


def test_a_mask_that_is_not_applied_is_noted(tmp_path: Path) -> None:
    """The model reads its mask but averages over the padding too."""
    model = masked_net()
    (divide,) = [node for node in model.graph.node if node.op_type == "Div"]
    (product,) = [node for node in model.graph.node if node.op_type == "Mul"]
    summed = next(node for node in model.graph.node if product.output[0] in node.input)
    summed.input[0] = product.input[0]
    assert divide.input[0] == summed.output[0]
    folders = variable(tmp_path, model, pad=3.0)

    engine = folders.build().engine

    assert any("does not apply its mask" in note for note in engine.manifest.notes)


def _metrics(folders: VariableFolders) -> dict[str, float]:
    store = EngineStore(folders.root / "engines")
    return dict(store.current("toy").manifest.verdict.metrics)


def test_golden_samples_are_those_of_the_largest_length(built: VariableFolders) -> None:
    """As the service compares them when it loads the engine."""
    engine = EngineStore(built.root / "engines").usable("toy", fingerprint("onnx"))
    with np.load(engine.path.with_name(GOLDEN_FILE)) as arrays:
        assert arrays["in:x"].shape[1:] == (MOST, 8)
        assert set(np.unique(arrays["in:mask"])) == {0, 1}
    runner = load(engine)
    try:
        check_golden(engine, runner)
    finally:
        runner.close()


def test_other_buckets_verify_again(tmp_path: Path) -> None:
    """A bucket more is another engine to serve; without samples for it the manifest says so."""
    folders = variable(tmp_path)
    folders.build()
    recipe = folders.engine / "recipe.toml"
    text = recipe.read_text().replace("shape = [12,", "shape = [16,").replace("[4, 8]", "[4, 12]")
    recipe.write_text(text)

    result = folders.build()

    assert result.changed
    assert "samples@12" in result.engine.manifest.verdict.metrics
    assert any("not verified at length 16" in note for note in result.engine.manifest.notes)


def test_a_fixed_axis_is_refused(tmp_path: Path) -> None:
    """The recipe says that it is variable, the file does not."""
    model = masked_net()
    for tensor in (*model.graph.input, *model.graph.output):
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param == "length":
                dim.dim_value = 12
    folders = VariableFolders(tmp_path)
    folders.write(masked_net())
    data = model.SerializeToString(deterministic=True)
    (folders.engine / "model.onnx").write_bytes(data)
    recipe = folders.engine / "recipe.toml"
    digest = hashlib.sha256(data).hexdigest()
    recipe.write_text(re.sub('sha256 = "[0-9a-f]*"', f'sha256 = "{digest}"', recipe.read_text()))

    with pytest.raises(BuildError, match=r"calls variable \(\[input.length\]\)"):
        folders.build()


def test_a_build_for_a_dla_says_that_it_cannot(tmp_path: Path) -> None:
    """Before anything is built, whatever is installed here: a DLA runs one shape."""
    variable(tmp_path)
    engines, calib = tmp_path / "engines", tmp_path / "calib"
    with pytest.raises(BuildError, match="a DLA runs one shape only"):
        build_model("toy", engines=engines, calib=calib, runner="tensorrt", device="dla:0")


def ask(name: str, sample: Floats) -> Ask:
    """A request with one sample of its own length."""
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, *sample.shape],
        "data": [sample.tolist()],
    }
    return Ask(
        TOPICS.infer("toy"),
        json.dumps({"inputs": [tensor]}).encode(),
        TOPICS.reply("wire"),
        name.encode(),
        protocol.JSON,
        expiry_s=600,
    )


def outputs(reply: Message) -> dict[str, Any]:
    """By name."""
    assert reply.status == "200", reply
    found = reply.json()["outputs"]
    return {each["name"]: np.reshape(each["data"], each["shape"]) for each in found}


def test_what_was_built_is_served(
    built: VariableFolders, broker: Mosquitto, tmp_path: Path
) -> None:
    """`edged serve` answers all lengths mixed as the engine answers them alone; 13 is refused.

    The engine file at each sample's own length is the reference, and padding is counted.
    """
    engines = built.root / "engines"
    engine = EngineStore(engines).current("toy").read()
    samples = draw(3, 60)
    quick = {"report__telemetry_interval_s": "0.1"}
    with WireClient(broker) as client, Daemon(tmp_path, engines, broker, **quick) as daemon:
        wait_online(client)
        for number, sample in enumerate(samples):
            client.publish(ask(f"n{number}", sample))
        for number, sample in enumerate(samples):
            found = outputs(client.wait_reply(b"n%d" % number))
            for name, rows in found.items():
                wanted = answer(engine, sample, name).astype(np.float64)
                assert rows[0].shape == wanted.shape
                np.testing.assert_allclose(rows[0], wanted, rtol=1e-4, atol=1e-5)

        client.publish(ask("long", np.zeros((MOST + 1, 8), np.float32)))
        refused = client.wait_reply(b"long")
        assert refused.json()["code"] == "bad_shape"
        assert "has length 13, but this model takes 1 to 12 (max_length)" in refused.json()["error"]

        def all_told(message: Message) -> bool:
            if message.topic != TOPICS.telemetry("metrics"):
                return False
            told = message.json()["metrics"].get("samples_total", [])
            return bool(sum(series["value"] for series in told) == len(samples))

        told = client.wait_for(all_told, "telemetry").json()["metrics"]
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()
    data = sum(len(sample) for sample in samples)
    whole = sum(next(b for b in (*BUCKETS, MOST) if b >= len(sample)) for sample in samples)
    assert [series["value"] for series in told["positions_total"]] == [whole]
    assert [series["value"] for series in told["positions_padded_total"]] == [whole - data]
