"""FP32, FP16 and INT8 engines of one MatMul-heavy network, built by the build line and timed.

    python -m tests.bench.gpu_precision RESULT.json [--network large] [--seconds 480]

The large network is eight MLP blocks 768 -> 3072 -> 768 on 196 tokens, the products of half a
ViT-B/16; the huge one is twelve of 1024 -> 4096 -> 1024, and ``vit`` four of these behind the
bytes of 224 x 224 pixels, as a camera's image arrives. First the build makes all precisions, times
them in turn and chooses, as it does for a user, with its gates opened, since random weights have no
accuracy to keep. Then its choice, FP32 and, while there is time, the other precisions are measured
in turn: latency alone at batch 1, 8 and 32, throughput with all lanes busy. This is the one command
that shows native INT8 on a device whose TensorRT computes it natively. A precision that fails is
told with its reason, and the others go on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edged.build.pipeline import BuildResult, build_model
from edged.build_options import WantedPrecision
from edged.errors import EdgedError
from edged.runners import Runner, load, run_batch, warm_up
from tests.bench.gpu_networks import CLASSES, NETWORKS, Network, network_onnx

PRECISIONS: tuple[WantedPrecision, ...] = ("auto", "fp32", "fp16", "int8")
SIZES = (1, 8, 32)
ROUNDS = 5
SAMPLES = 8
"""In each split: the weights are random, and most of the time would go into calibrating them."""
RECIPE = """[model]
sha256 = "{digest}"
[[input]]
name = "x"
datatype = "{datatype}"
shape = {sample}
[[output]]
name = "y"
shape = [{classes}]
[engine]
max_batch = {largest}
batch_sizes = {sizes}
precision = "fp32"
fallback = false
[calibrate]
samples = 8
[verify]
max_drop = 1.0
min_agreement = 0.0
"""


def write_model(folder: Path, network: Network, sizes: Sequence[int] = SIZES) -> None:
    """Recipe, model, and random samples, as a user would lay them."""
    random = np.random.default_rng(0)
    engines, calib = folder / "engines" / "mlp", folder / "calib" / "mlp"
    for each in (engines, calib):
        each.mkdir(parents=True)
    model = network_onnx(network, half=False)
    (engines / "model.onnx").write_bytes(model)
    recipe = RECIPE.format(
        digest=hashlib.sha256(model).hexdigest(),
        datatype="UINT8" if network.pixels else "FP32",
        sample=list(network.sample),
        classes=CLASSES,
        largest=max(sizes),
        sizes=list(sizes),
    )
    (engines / "recipe.toml").write_text(recipe, encoding="utf-8")
    lines = ['source = "random"', 'license = "none"', "seed = 0", 'method = "normal values"']
    for split in ("calibration", "heldout"):
        rows = network.draw(random, SAMPLES)
        file = calib / f"{split}.npz"
        np.savez(file, x=rows, labels=np.zeros(len(rows), np.int64))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines += [f'[{split}]\ndescription = "random"', f"[[{split}.files]]"]
        lines += [f'path = "{file.name}"', f'sha256 = "{digest}"', f"count = {len(rows)}"]
    (calib / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def latency_ms(runner: Runner, rows: Any) -> float:
    """Median of one batch alone, from filled staging buffers to a readable answer."""
    return median(run_batch(runner, {"x": rows}).service_s for _ in range(30)) * 1e3


def measure(runner: Any, network: Network) -> dict[int, tuple[float, float]]:
    """Batch size -> latency in ms, samples/s."""
    from tests.bench.gpu_lanes import lanes_loop  # needs pycuda

    random = np.random.default_rng(1)
    found = {}
    for size in SIZES:
        rows = network.draw(random, size)
        found[size] = (latency_ms(runner, rows), lanes_loop(runner, rows, 0.4)["samples_s"])
    return found


def build(folder: Path, precision: WantedPrecision, network: Network) -> BuildResult | str:
    """The engine, or why there is none."""
    try:
        return build_model(
            "mlp",
            engines=folder / "engines",
            calib=folder / "calib",
            runner="tensorrt",
            precision=precision,
        )
    except EdgedError as err:
        say(f"network {network.name!r} in {precision}: {err.message}")
        return err.message


def facts_of(result: BuildResult) -> dict[str, Any]:
    """What the build said of an engine and of those that it did not take."""
    manifest = result.engine.manifest
    report = json.loads(result.engine.path.with_name("report.json").read_text(encoding="utf-8"))
    return {
        "precision": manifest.precision,
        "variant": report["variant"],
        "metrics": dict(manifest.verdict.metrics),
        "int8_layers": len(manifest.quantized),
        "build_s": round(result.seconds, 1),
        "seconds": report["seconds"],
        "slo_batch": manifest.slo_batch,
        "notes": list(manifest.notes),
        "candidates": report["candidates"],
        "fingerprint": dict(manifest.fingerprint),
    }


def say(line: object) -> None:
    """At once: a build may take minutes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def table(rounds: list[dict[str, dict[int, tuple[float, float]]]]) -> list[dict[str, Any]]:
    """Medians over all rounds, and gains over FP32 within each round."""
    rows = []
    for size in SIZES:
        for precision in rounds[0]:
            mine = [each[precision][size] for each in rounds]
            row: dict[str, Any] = {
                "precision": precision,
                "batch": size,
                "latency_ms": round(median(ms for ms, _ in mine), 3),
                "samples_s": round(median(rate for _, rate in mine)),
            }
            if "fp32" in rounds[0]:
                pairs = list(zip([each["fp32"][size] for each in rounds], mine, strict=True))
                row["latency_gain"] = round(median(b[0] / m[0] for b, m in pairs), 2)
                row["throughput_gain"] = round(median(m[1] / b[1] for b, m in pairs), 2)
            rows.append(row)
            say(row)
    return rows


class Bench:
    """What was built so far, and how long there is left.

    Args:
        folder: for the model and its engines.
        network: which.
        seconds: nothing is begun after that.
    """

    def __init__(self, folder: Path, network: Network, seconds: float) -> None:
        self._folder, self._network = folder, network
        self._ends = time.monotonic() + seconds
        self.runners: dict[str, Runner] = {}
        self.facts: dict[str, Any] = {"network": network.name, "failed": {}}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def add(self, precision: WantedPrecision) -> None:
        """Builds and opens one engine; the reason if that fails."""
        begun = time.monotonic()
        result = build(self._folder, precision, self._network)
        if isinstance(result, str):
            self.facts["failed"][precision] = result
            return
        facts = self.facts[precision] = facts_of(result)
        say(f"{precision}: {facts['variant']}, {time.monotonic() - begun:.1f} s, {facts['notes']}")
        for row in facts["candidates"]:
            say(f"    {row}")
        try:
            runner = load(result.engine)
            warm_up(runner, SIZES)
        except EdgedError as err:
            self.facts["failed"][precision] = err.message
        else:
            self.runners[precision] = runner

    def measure(self) -> list[dict[str, Any]]:
        """All engines in turn, so that all see the same machine."""
        rounds: list[dict[str, dict[int, tuple[float, float]]]] = []
        while self.runners and len(rounds) < ROUNDS and (self.left > 0 or not rounds):
            rounds.append({n: measure(each, self._network) for n, each in self.runners.items()})
        return table(rounds) if rounds else []


def main() -> None:
    """Builds all, then measures in turn; writes what there is after each step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--network", choices=list(NETWORKS), default="large")
    parser.add_argument("--seconds", type=float, default=480, help="nothing is begun after that")
    options = parser.parse_args()
    network = NETWORKS[options.network]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, network)
        bench = Bench(folder, network, options.seconds)
        rows: list[dict[str, Any]] = []
        for number, precision in enumerate(PRECISIONS):
            if number < 2 or bench.left > options.seconds / 3:
                bench.add(precision)
            if number > 0:
                rows = bench.measure() or rows
            document = {"facts": bench.facts, "rows": rows}
            options.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        for runner in bench.runners.values():
            runner.close()


if __name__ == "__main__":
    main()
