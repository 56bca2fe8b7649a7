"""Calibration beside running the float graph over the same samples: time and peak memory.

    python -m tests.bench.calibration RESULT.json [--quick]

Each measurement is a process of its own, so that its peak is its own; both read the samples as
they go, in batches of the same size. The network is a residual one of 3x3 and 1x1 convolutions on
64 x 64 images, so that activations weigh much and arithmetic little.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edged.build.calibrate import collect
from edged.build.normalise import normalise
from edged.build.observe import with_observers
from edged.build.placement import place
from edged.build_options import QuantizeOptions
from edged.runners.onnx import FloatGraph
from tests.doubles.onnx_models import GraphWriter

SHAPE = (3, 64, 64)
BATCH = 8  # as a build calibrates
COUNTS = (10, 10_000)
ROUNDS = 3


def network() -> onnx.ModelProto:
    """Stem and six residual blocks of 32 channels at full size, then a head."""
    g = GraphWriter()
    x = g.node("Relu", [g.conv("x", "stem", (3, 32))])
    for number in range(6):
        a = g.node("Relu", [g.conv(x, f"a{number}", (32, 32))])
        weight, bias = g.random(f"b{number}_w", 32, 32, 1, 1), g.random(f"b{number}_b", 32)
        b = g.node("Conv", [a, weight, bias], f"b{number}")
        x = g.node("Relu", [g.node("Add", [b, x])])
    flat = g.node("Flatten", [g.node("GlobalAveragePool", [x])])
    g.gemm(flat, "head", (32, 10))
    model = g.model({"x": ["batch", *SHAPE]}, {"head_out": ["batch", 10]})
    return normalise(model, {"x": SHAPE})


def samples(count: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Batches, made as they are asked for."""
    rng = np.random.default_rng(0)
    block = rng.normal(size=(BATCH, *SHAPE)).astype(np.float32)
    for at in range(0, count, BATCH):
        yield {"x": block[: min(BATCH, count - at)]}


def measure(what: str, count: int) -> dict[str, float]:
    """One run in this process: seconds and MiB at the peak."""
    model = network()
    if what == "float":
        graph = FloatGraph(model.SerializeToString())
        begun, cpu = time.monotonic(), time.process_time()
        for batch in samples(count):
            graph.run(batch)
    else:
        tensors = sorted(place(model, QuantizeOptions()).tensors)
        observed = with_observers(model, tensors)
        graph = FloatGraph(observed.model)
        begun, cpu = time.monotonic(), time.process_time()
        collect(
            lambda batch: observed.observed(graph.run(batch, observed.outputs)),
            samples(count),
            tensors,
        )
    spent, cpu = time.monotonic() - begun, time.process_time() - cpu
    return {
        "seconds": spent,
        "CPU seconds": cpu,
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def compare(count: int, rounds: int) -> dict[str, Any]:
    """Both in turn; medians, and the median of the ratios within each round."""
    found: dict[str, list[dict[str, float]]] = {"float": [], "calibration": []}
    for _ in range(rounds):
        for what, runs in found.items():
            command = [sys.executable, "-m", "tests.bench.calibration", "-", "--one", what]
            command += ["--count", str(count)]
            ended = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(ended.stdout))
    row: dict[str, Any] = {"samples": count}
    for unit in ("seconds", "CPU seconds", "MiB"):
        middle = {what: float(np.median([r[unit] for r in runs])) for what, runs in found.items()}
        row[unit] = {what: round(value, 3) for what, value in middle.items()}
        pairs = zip(found["calibration"], found["float"], strict=True)
        row[f"{unit} ratio"] = round(float(np.median([a[unit] / b[unit] for a, b in pairs])), 3)
    return row


def main() -> int:
    """Measures and writes the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true", help="320 samples instead of 10,000")
    parser.add_argument("--one", choices=("float", "calibration"), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one, options.count)))
        return 0
    counts = (10, 320) if options.quick else COUNTS
    rows = [compare(count, ROUNDS if count < 1000 else 1) for count in counts]
    options.result.write_text(json.dumps(rows, indent=1) + "\n")
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
