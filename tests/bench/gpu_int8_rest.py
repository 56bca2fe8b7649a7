"""What an INT8 engine computes its rest in, and what comes of it: NaN, accuracy, time.

    python -m tests.bench.gpu_int8_rest RESULT.json [--seconds 85] [--network large]

One MatMul-heavy network in six forms of one Q/DQ graph, each built and run by the build line's own
parts. The form "small sums" has activation scales eight times as large, so that no integer sum of a
layer leaves float16's range: if it is finite where the same form with its own scales is not, it is
those sums that overflow. Nothing ends the run but the time limit; each form prints what became of
it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edged.build import fp16
from edged.build.build_run import open_build
from edged.build.dataset import model_inputs
from edged.build.graphs import ModelGraphs
from edged.build.onnx_graph import with_outputs
from edged.build.plan import TypedGraphs
from edged.build.plan_process import BuildLimits
from edged.build.precision import Variant
from edged.build.stages import Stages
from edged.build.target import Made, Order, Target, choose_target
from edged.runners import Runner, run_batch
from edged.runners.onnx import FloatGraph
from tests.bench.gpu_networks import NETWORKS, Network
from tests.bench.gpu_precision import latency_ms, say, write_model

Rows = npt.NDArray[np.float32]

SIZES = (1, 8, 64)
_LOWER = 8  # |q| <= 16: 222,083 becomes less than 28,000


def small_sums(pairs: bytes) -> bytes:
    """The Q/DQ graph with larger scales of its activations."""
    model = onnx.load_from_string(pairs)
    constants = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            scale = constants[node.input[1]]
            value = numpy_helper.to_array(scale) * np.float32(_LOWER)
            scale.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), scale.name))
    return bytes(model.SerializeToString())


def forms(graphs: ModelGraphs) -> dict[str, tuple[Variant, Callable[[], TypedGraphs]]]:
    """Label -> variant and its graph, made when it is asked for."""
    mixed = Variant("int8", fp16_rest=True)

    def lowered() -> TypedGraphs:
        weak = small_sums(graphs.quantized.model)
        return TypedGraphs(fp16.to_half(onnx.load_from_string(weak), {}).model, weak)

    def plain(variant: Variant) -> tuple[Variant, Callable[[], TypedGraphs]]:
        return variant, lambda: graphs.of(variant)[0]

    return {
        "INT8, FP16 rest": plain(mixed),
        "INT8, FP16 rest, FP32 sums": plain(replace(mixed, wide=True)),
        "INT8, FP32 rest": plain(Variant("int8")),
        "INT8, FP16 rest, small sums": (mixed, lowered),
        "FP16": plain(Variant("fp16")),
        "FP32": plain(Variant("fp32")),
    }


def sqnr_db(wanted: Rows, found: Rows) -> float:
    """Over all entries; about 200 where both are the same."""
    noise = max(float(np.square(wanted.astype(np.float64) - found).sum()), 1e-20)
    return round(10 * float(np.log10(np.square(wanted, dtype=np.float64).sum() / noise)), 2)


def judge(runner: Runner, rows: Rows, wanted: Rows, graph: bytes) -> dict[str, Any]:
    """Whether the answers are finite, and how near the float model's and the same graph's."""
    parts = [run_batch(runner, {"x": rows[at : at + 8]}).outputs["y"].copy()
             for at in range(0, len(rows), 8)]  # fmt: skip
    found = np.concatenate(parts)
    bad = int(found.size - np.isfinite(found).sum())
    facts: dict[str, Any] = {"not finite": bad, "of": found.size}
    if bad == 0:
        facts["dB against FP32 in ONNX Runtime"] = sqnr_db(wanted, found)
        same = FloatGraph(graph).run({"x": rows})["y"]
        facts["dB against the same graph in ONNX Runtime"] = sqnr_db(np.asarray(same), found)
    return facts


def one(target: Target, order: Order, rows: Rows, wanted: Rows, network: Network) -> dict[str, Any]:
    """Builds, runs and times one form."""
    begun = time.monotonic()
    made: Made = target.make(order, lambda _what, _share: None)
    built = time.monotonic()
    runner = target.open(order, made)
    try:
        runner.prepare(lambda _done, _total: None)
        facts: dict[str, Any] = {
            "build_s": round(built - begun, 1),
            "load_s": round(time.monotonic() - built, 1),
            "linear layers": sorted({"x".join(each.inputs[:2]) + "->" + "x".join(each.outputs)
                                     for each in made.layers if each.linear}),
        }  # fmt: skip
        facts |= judge(runner, rows, wanted, order.graphs.weak)
        random = np.random.default_rng(1)
        facts["latency_ms"] = {}
        for size in SIZES:
            batch = random.standard_normal((size, network.tokens, network.width))
            facts["latency_ms"][size] = round(latency_ms(runner, batch.astype(np.float32)), 3)
    finally:
        runner.close()
    return facts


def largest_sum(graphs: ModelGraphs, rows: Rows) -> float:
    """Largest integer sum of any INT8 product: its float output over its two scales."""
    model = onnx.load_from_string(graphs.quantized.model)
    scales = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    layers = [node for node in model.graph.node if node.name in set(graphs.quantized.layers)]
    names = [node.output[0] for node in layers]
    outputs = FloatGraph(with_outputs(model, names)).run({"x": rows}, names)
    sums = []
    for node in layers:
        both = [scales[makers[name].input[1]] for name in node.input[:2]]
        sums.append(float(np.abs(outputs[node.output[0]] / (both[0] * both[1])).max()))
    return max(sums)


def main() -> int:
    """Runs all forms, prints and writes what became of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--seconds", type=float, default=85, help="no form is begun after that")
    parser.add_argument("--network", choices=list(NETWORKS), default="large")
    parser.add_argument("--blocks", type=int, default=4, help="at most so many of the network's")
    options = parser.parse_args()
    begun, network = time.monotonic(), NETWORKS[options.network]
    network = replace(network, blocks=min(network.blocks, options.blocks))
    found: dict[str, Any] = {"network": str(network), "forms": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, network, SIZES)
        build = open_build("mlp", folder / "engines", folder / "calib", lambda _what, _share: None)
        graphs = ModelGraphs(build, Stages(folder / "stages"))
        target = choose_target("auto", "cuda:0", BuildLimits())
        found["fingerprint"] = dict(target.fingerprint)
        held = next(build.dataset.heldout.batches(16))
        rows = np.asarray(model_inputs(held, build.recipe.input)["x"], np.float32)
        wanted = np.asarray(FloatGraph(graphs.reference).run({"x": rows})["y"], np.float32)
        found["largest integer sum"] = round(largest_sum(graphs, rows[:2]))
        say(f"{found}, {time.monotonic() - begun:.1f} s")
        for number, (label, (variant, graph)) in enumerate(forms(graphs).items()):
            if time.monotonic() - begun > options.seconds:
                found["forms"][label] = {"error": "no time left"}
                continue
            place = folder / str(number)
            place.mkdir()
            try:
                facts = one(target, Order(build.recipe, variant, graph(), place), rows, wanted,
                            network)  # fmt: skip
            except Exception as err:  # whatever it is, the other forms are still to be seen
                facts = {"error": f"{type(err).__name__}: {err}"[:600]}
            found["forms"][label] = facts
            say(f"{label}: {facts}, {time.monotonic() - begun:.1f} s")
            options.result.write_text(json.dumps(found, indent=1) + "\n")
    options.result.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
