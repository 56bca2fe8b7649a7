"""The commands about engines: ``edged build``, ``edged verify`` and ``edged engines``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.cli_options import settings_of

if TYPE_CHECKING:
    from edged.manifest import Verdict

_ACTIONS = {
    "list": "what is in the store, and whether it fits this device (default)",
    "verify": "compare files with their digests; with --run also answers",
    "rollback": "serve the earlier engine again",
    "prune": "remove all but the engine that serves",
}


def add_build(commands: Any) -> None:
    """Adds ``edged build``."""
    parser = commands.add_parser("build", help="build the engine of a model and install it")
    _add_model_folders(parser)
    parser.add_argument("--force", action="store_true", help="build although nothing has changed")
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="build nothing; rank the layers by what each costs in INT8; ended, it goes on later",
    )
    parser.add_argument(
        "--runner",
        choices=("auto", "onnx", "tensorrt"),
        default="auto",
        help="what the engine is for; auto: TensorRT where there is a GPU, else ONNX Runtime",
    )
    parser.add_argument(
        "--precision", choices=("auto", "int8", "fp16", "fp32"), help="instead of the recipe's"
    )
    _add_device(parser)
    parser.set_defaults(run=_build)


def add_verify(commands: Any) -> None:
    """Adds ``edged verify``."""
    parser = commands.add_parser("verify", help="compare an installed engine with the FP32 model")
    _add_model_folders(parser)
    _add_device(parser)
    parser.set_defaults(run=_verify)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda:0", help="GPU that a TensorRT engine is for")


def _add_model_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a folder under engines/")
    parser.add_argument("--engines", type=Path, help="folder of models (paths.engines)")
    parser.add_argument("--calib", type=Path, help="folder of calibration sets (paths.calib)")


def _say(sentence: str, share: float) -> None:
    if sys.stderr.isatty():  # one line that is drawn over again; else a line each, as logs want it
        bar = "#" * round(20 * share) + "." * (20 - round(20 * share))
        end = "\n" if share >= 1 else ""
        print(
            f"\r\x1b[K[{bar}] {share:4.0%}  {sentence[:90]}", end=end, file=sys.stderr, flush=True
        )
    else:
        print(f"{share:4.0%}  {sentence}", file=sys.stderr, flush=True)


def _scan(options: argparse.Namespace) -> int:
    from edged.build.scan import scan_model

    paths = settings_of(options).paths
    costs = scan_model(options.model, engines=paths.engines, calib=paths.calib, progress=_say)
    print(f"{'loss':>8} {'SQNR, dB':>9}  layer, alone in INT8, costliest first")
    for cost in costs:
        print(f"{cost.loss:8.4f} {cost.sqnr_db:9.1f}  {cost.node}")
    return 0


def _build(options: argparse.Namespace) -> int:
    if options.sensitivity:
        return _scan(options)
    from edged.build.pipeline import build_model

    paths = settings_of(options).paths
    result = build_model(
        options.model,
        engines=paths.engines,
        calib=paths.calib,
        force=options.force,
        progress=_say,
        runner=options.runner,
        device=options.device,
        precision=options.precision,
    )
    manifest = result.engine.manifest
    if result.changed:
        print(f"built {manifest.model} {manifest.key[:12]} in {result.seconds:.1f} s")
    else:
        print(f"{manifest.model} {manifest.key[:12]}: nothing has changed")
    print(
        f"{manifest.precision}, {len(manifest.quantized)} layers quantized, for {manifest.runner}; "
        f"{manifest.latency_ms['1']:g} ms at batch 1, "
        f"{manifest.latency_ms[str(manifest.max_batch)]:g} ms at {manifest.max_batch}"
    )
    for note in manifest.notes:
        print(f"note: {note}")
    print(f"report: {result.engine.path.with_name('report.html')}")
    _print_verdict(manifest.verdict)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from edged.build.pipeline import verify_model

    paths = settings_of(options).paths
    verdict = verify_model(
        options.model,
        engines=paths.engines,
        calib=paths.calib,
        progress=_say,
        device=options.device,
    )
    _print_verdict(verdict)
    return 0 if verdict.passed else 1


def add_engines(commands: Any) -> None:
    """Adds ``edged engines``."""
    parser = commands.add_parser("engines", help="list, verify, roll back and prune built engines")
    parser.set_defaults(run=_engines)
    _add_actions(parser)


def _engines(options: argparse.Namespace) -> int:
    from edged import engines

    return engines.run(
        engines.EnginesOptions(
            store=settings_of(options).paths.engines,
            action=options.action,
            models=options.models,
            run=options.run_golden,
            device=options.device,
            json=options.json,
        )
    )


def _print_verdict(verdict: Verdict) -> None:
    print(f"{'samples':<16}{verdict.samples}  (held out)")
    for name, value in verdict.metrics.items():
        print(f"{name:<16}{value:.4f}")
    print("passed" if verdict.passed else f"not passed: {'; '.join(verdict.reasons)}")


def _add_actions(parser: argparse.ArgumentParser) -> None:
    """Adds actions and options to the command."""
    parser.set_defaults(action="list", models=[], run_golden=False)
    _add_action_options(parser, {"json": False, "engines": None, "device": "cuda:0"})
    actions = parser.add_subparsers(metavar="ACTION")
    for name, what in _ACTIONS.items():
        action = actions.add_parser(name, help=what)
        action.add_argument("models", metavar="MODEL", nargs="*", help="default: all")
        action.set_defaults(action=name)
        _add_action_options(action, dict.fromkeys(("json", "engines", "device"), argparse.SUPPRESS))
        if name == "verify":
            action.add_argument(
                "--run", action="store_true", dest="run_golden", help="run the golden samples too"
            )


def _add_action_options(parser: argparse.ArgumentParser, default: dict[str, Any]) -> None:
    """Before the action or after it: there, what is not given does not undo what was."""
    parser.add_argument(
        "--json", action="store_true", default=default["json"], help="print one JSON document"
    )
    parser.add_argument(
        "--engines", type=Path, default=default["engines"], help="folder of models (paths.engines)"
    )
    parser.add_argument(
        "--device", default=default["device"], help="GPU that TensorRT engines are for"
    )
