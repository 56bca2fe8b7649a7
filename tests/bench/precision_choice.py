"""Which precision the build takes for the bundled models here, and what each one would cost.

    python -m tests.bench.precision_choice RESULT.json [--runner onnx|tensorrt] [--model NAME ...]

Each model is built anew with ``precision = "auto"`` from its committed ranges; the table is that of
the build report: engines timed in turn, median of nine rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edged.build.pipeline import build_model
from tests.doubles.service import copy_model


def choice(name: str, runner: Any) -> dict[str, Any]:
    """Builds one model; what the report says of its candidates."""
    with tempfile.TemporaryDirectory() as folder:
        engines, calib = copy_model(name, Path(folder))
        result = build_model(name, engines=engines, calib=calib, runner=runner, precision="auto")
        begun = time.process_time()
        build_model(name, engines=engines, calib=calib, runner=runner, precision="auto")
        again = time.process_time() - begun
        report = json.loads(result.engine.path.with_name("report.json").read_text())
    wanted = ("model", "precision", "slo_batch", "fingerprint", "candidates", "accuracy", "notes")
    return {key: report[key] for key in wanted} | {
        "build_s": round(result.seconds, 1),
        "second_run_cpu_s": round(again, 3),
    }


def main() -> None:
    """Builds and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--runner", choices=("onnx", "tensorrt"), default="onnx")
    parser.add_argument("--model", nargs="*", default=["digits", "watch"])
    options = parser.parse_args()
    found = [choice(name, options.runner) for name in options.model]
    machine = {"processors": os.cpu_count(), "machine": platform.machine()}
    document = {"machine": machine, "models": found}
    options.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for model in found:
        size = str(model["slo_batch"])
        for row in model["candidates"]:
            if "latency_ms" in row:
                sys.stdout.write(
                    f"| {model['model']} | {row['variant']} | {row['latency_ms']['1']:.3f} | "
                    f"{row['latency_ms'][size]:.3f} | {row['samples_s'][size]:.0f} | "
                    f"{row['gain']:.2f} | {'yes' if row['installed'] else ''} |\n"
                )


if __name__ == "__main__":
    main()
