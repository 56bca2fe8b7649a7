"""FP32, FP16 and INT8 engines of one MatMul-heavy network, built by the build line and timed.

    python -m tests.bench.gpu_precision RESULT.json

The network is eight MLP blocks 768 -> 3072 -> 768 on 196 tokens, as in ViT-S. Each precision is
built from the same ONNX file and the same samples by `build_model`, with its gates opened (random
weights have no accuracy to keep), and measured on the same device in turn: latency alone at batch
1, 8 and 32, throughput with all lanes busy. This is the one command that shows native INT8 on a
device whose TensorRT computes it natively.
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

from edged.build.pipeline import build_model
from edged.recipe import Precision
from edged.runners import Runner, load, run_batch, warm_up
from tests.bench.gpu_lanes import lanes_loop
from tests.bench.gpu_networks import CLASSES, LARGE, network_onnx

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
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
fallback = false
[calibrate]
samples = 16
[verify]
max_drop = 1.0
min_agreement = 0.0
"""


def write_model(folder: Path) -> None:
    """Recipe, model, and random samples, as a user would lay them."""
    random = np.random.default_rng(0)
    engines, calib = folder / "engines" / "mlp", folder / "calib" / "mlp"
    for each in (engines, calib):
        each.mkdir(parents=True)
    model = network_onnx(LARGE, half=False)
    (engines / "model.onnx").write_bytes(model)
    recipe = RECIPE.format(
        digest=hashlib.sha256(model).hexdigest(),
        tokens=LARGE.tokens,
        width=LARGE.width,
        classes=CLASSES,
    )
    (engines / "recipe.toml").write_text(recipe, encoding="utf-8")
    lines = ['source = "random"', 'license = "none"', "seed = 0", 'method = "normal values"']
    for split in ("calibration", "heldout"):
        rows = random.standard_normal((16, LARGE.tokens, LARGE.width)).astype(np.float32)
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


def measure(runner: Any) -> dict[int, tuple[float, float]]:
    """Batch size -> latency in ms, samples/s."""
    random = np.random.default_rng(1)
    found = {}
    for size in SIZES:
        rows = random.standard_normal((size, LARGE.tokens, LARGE.width)).astype(np.float32)
        found[size] = (latency_ms(runner, rows), lanes_loop(runner, rows, 0.4)["samples_s"])
    return found


def main() -> None:
    """Builds all, then measures in turn so that all see the same machine."""
    runners: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        for precision in PRECISIONS:
            result = build_model(
                "mlp",
                engines=folder / "engines",
                calib=folder / "calib",
                runner="tensorrt",
                precision=precision,
            )
            manifest = result.engine.manifest
            facts[precision] = {
                "sqnr_db": manifest.verdict.metrics["sqnr_db"],
                "int8_layers": len(manifest.quantized),
                "build_s": round(result.seconds, 1),
                "notes": list(manifest.notes),
                "fingerprint": dict(manifest.fingerprint),
            }
            runners[precision] = load(result.engine)
            warm_up(runners[precision], SIZES)
        rounds = [
            {name: measure(runner) for name, runner in runners.items()} for _ in range(ROUNDS)
        ]
    table = []
    for size in SIZES:
        for precision in PRECISIONS:
            base = [each["fp32"][size] for each in rounds]
            mine = [each[precision][size] for each in rounds]
            row = {
                "precision": precision,
                "batch": size,
                "latency_ms": round(median(ms for ms, _ in mine), 3),
                "samples_s": round(median(rate for _, rate in mine)),
                "latency_gain": round(
                    median(b[0] / m[0] for b, m in zip(base, mine, strict=True)), 2
                ),
                "throughput_gain": round(
                    median(m[1] / b[1] for b, m in zip(base, mine, strict=True)), 2
                ),
            }
            table.append(row)
            sys.stdout.write(f"{row}\n")
    for runner in runners.values():
        runner.close()
    Path(sys.argv[1]).write_text(json.dumps({"facts": facts, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
