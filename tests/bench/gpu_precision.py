"""FP32, FP16 and INT8 engines of one MatMul-heavy network, built by the build line and timed.

    python -m tests.bench.gpu_precision RESULT.json [small|medium|large]

The large network is eight MLP blocks 768 -> 3072 -> 768 on 196 tokens, as in ViT-S. Each
precision is built from the same ONNX file and the same samples by `build_model`, with its gates
opened (random weights have no accuracy to keep), and measured on the same device in turn: latency
alone at batch 1, 8 and 32, throughput with all lanes busy. This is the one command that shows
native INT8 on a device whose TensorRT computes it natively. A precision that cannot be built or
does not pass is told with its reason, and the others go on. At last the build chooses by itself, as
it does for a user, and its choice is compared with FP32.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edged.build.pipeline import BuildResult, build_model
from edged.errors import EdgedError
from edged.recipe import WantedPrecision
from edged.runners import Runner, load, run_batch, warm_up
from tests.bench.gpu_lanes import lanes_loop
from tests.bench.gpu_networks import CLASSES, LARGE, MEDIUM, SMALL, Network, network_onnx

PRECISIONS: tuple[WantedPrecision, ...] = ("fp32", "fp16", "int8", "auto")
SIZES = (1, 8, 32)
ROUNDS = 5
RECIPE = """[model]
sha256 = "{digest}"
[[input]]
name = "x"
datatype = "FP32"
shape = [{tokens}, {width}]
[[output]]
name = "y"
shape = [{classes}]
[engine]
max_batch = 32
batch_sizes = [1, 8, 32]
precision = "fp32"
fallback = false
[calibrate]
samples = 16
[verify]
max_drop = 1.0
min_agreement = 0.0
"""


def write_model(folder: Path, network: Network) -> None:
    """Recipe, model, and random samples, as a user would lay them."""
    random = np.random.default_rng(0)
    engines, calib = folder / "engines" / "mlp", folder / "calib" / "mlp"
    for each in (engines, calib):
        each.mkdir(parents=True)
    model = network_onnx(network, half=False)
    (engines / "model.onnx").write_bytes(model)
    recipe = RECIPE.format(
        digest=hashlib.sha256(model).hexdigest(),
        tokens=network.tokens,
        width=network.width,
        classes=CLASSES,
    )
    (engines / "recipe.toml").write_text(recipe, encoding="utf-8")
    lines = ['source = "random"', 'license = "none"', "seed = 0", 'method = "normal values"']
    for split in ("calibration", "heldout"):
        rows = random.standard_normal((16, network.tokens, network.width)).astype(np.float32)
        file = calib / f"{split}.npz"
        np.savez(file, x=rows, labels=np.zeros(len(rows), np.int64))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines += [f'[{split}]\ndescription = "random"', f"[[{split}.files]]"]
        lines += [f'path = "{file.name}"', f'sha256 = "{digest}"', f"count = {len(rows)}"]
    (calib / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def latency_ms(runner: Runner, rows: Any) -> float:
    """Median of one batch alone, from staging to answer."""
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        run_batch(runner, {"x": rows})
        times.append(time.perf_counter() - begun)
    return median(times) * 1e3


def measure(runner: Any, network: Network) -> dict[int, tuple[float, float]]:
    """Batch size -> latency in ms, samples/s."""
    random = np.random.default_rng(1)
    found = {}
    for size in SIZES:
        rows = random.standard_normal((size, network.tokens, network.width)).astype(np.float32)
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
    """What the build said of an engine."""
    manifest = result.engine.manifest
    return {
        "precision": manifest.precision,
        "metrics": dict(manifest.verdict.metrics),
        "int8_layers": len(manifest.quantized),
        "build_s": round(result.seconds, 1),
        "slo_batch": manifest.slo_batch,
        "notes": list(manifest.notes),
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


def main() -> None:
    """Builds all, then measures in turn so that all see the same machine."""
    wanted = sys.argv[2] if len(sys.argv) > 2 else "large"
    network = {each.name: each for each in (SMALL, MEDIUM, LARGE)}[wanted]
    runners: dict[str, Runner] = {}
    facts: dict[str, Any] = {"network": network.name, "failed": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, network)
        for precision in PRECISIONS:
            result = build(folder, precision, network)
            if isinstance(result, str):
                facts["failed"][precision] = result
                continue
            facts[precision] = facts_of(result)
            say(f"{precision}: {facts[precision]['metrics']}")
            if precision == "auto":
                say(f"chosen: {facts[precision]['precision']}; {facts[precision]['notes']}")
            runners[precision] = load(result.engine)
            warm_up(runners[precision], SIZES)
        rounds = [
            {name: measure(runner, network) for name, runner in runners.items()}
            for _ in range(ROUNDS)
        ]
    rows = table(rounds) if runners else []
    for runner in runners.values():
        runner.close()
    Path(sys.argv[1]).write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
