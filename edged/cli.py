"""The command line: reads arguments, calls one function.

Each command imports what it needs by itself, so that ``edged serve`` starts quickly.
"""

from __future__ import annotations

import time

_BEGAN = time.monotonic()  # as near to exec as Python code comes

import argparse  # noqa: E402  # the line above has to be first
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from edged import __version__  # noqa: E402
from edged.cli_engines import add_actions  # noqa: E402
from edged.errors import ConfigError, EdgedError  # noqa: E402

if TYPE_CHECKING:
    from edged.client import Endpoint
    from edged.engine_store import Verdict
    from edged.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    78 is a mistake in the settings, 1 any other error that has a message; neither shows a stack.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as err:
        print(f"edged: {err.message}", file=sys.stderr)
        return os.EX_CONFIG
    except EdgedError as err:
        print(f"edged: {err.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edged", description="Edge inference daemon: INT8 engines, requests over MQTT."
    )
    parser.add_argument("--version", action="version", version=f"edged {__version__}")
    _add_config(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_serve,
        _add_build,
        _add_verify,
        _add_engines,
        _add_infer,
        _add_bench,
        _add_top,
        _add_simulate,
        _add_doctor,
        _add_outbox,
        _add_demo,
    ):
        add(commands)
    for command in commands.choices.values():  # before the command or after it, as one likes
        _add_config(command, default=argparse.SUPPRESS)
    return parser


def _add_config(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=default,
        help="settings file; default: EDGED_CONFIG, else /etc/edged/edged.toml",
    )


def _settings(options: argparse.Namespace) -> Settings:
    from edged.settings import load_settings

    overrides: dict[str, dict[str, Any]] = {}
    for name in ("engines", "calib"):
        if getattr(options, name, None) is not None:
            overrides.setdefault("paths", {})[name] = getattr(options, name)
    return load_settings(options.config, **overrides)


# ------------------------------------------------------------------ the service


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser("serve", help="run the service until SIGTERM")
    parser.add_argument("--engines", type=Path, help="folder of models (paths.engines)")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from edged.daemon import serve

    return serve(_settings(options), options.config, _BEGAN)


def _add_outbox(commands: Any) -> None:
    parser = commands.add_parser("outbox", help="say what waits to be reported, or was refused")
    parser.add_argument("--path", type=Path, help="folder of the outbox (outbox.path)")
    parser.add_argument(
        "--requeue", metavar="ID", help="send messages in quarantine again: ids with commas, or all"
    )
    parser.add_argument("--export", metavar="FILE", help="write all as JSON lines; - is stdout")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_outbox)


def _outbox(options: argparse.Namespace) -> int:
    from edged import outbox_command

    folder = options.path or _settings(options).outbox.path
    return outbox_command.run(
        outbox_command.OutboxOptions(folder, options.requeue, options.export, options.json)
    )


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="say what is missing for serving on this machine")
    parser.add_argument("--engines", type=Path, help="folder of models (paths.engines)")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from edged import doctor

    try:
        settings = _settings(options)
    except ConfigError as err:
        return doctor.run(err)
    return doctor.run(settings)


# ------------------------------------------------------------------ building


def _add_build(commands: Any) -> None:
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


def _add_verify(commands: Any) -> None:
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

    paths = _settings(options).paths
    costs = scan_model(options.model, engines=paths.engines, calib=paths.calib, progress=_say)
    print(f"{'loss':>8} {'SQNR, dB':>9}  layer, alone in INT8, costliest first")
    for cost in costs:
        print(f"{cost.loss:8.4f} {cost.sqnr_db:9.1f}  {cost.node}")
    return 0


def _build(options: argparse.Namespace) -> int:
    if options.sensitivity:
        return _scan(options)
    from edged.build.pipeline import build_model

    paths = _settings(options).paths
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

    paths = _settings(options).paths
    verdict = verify_model(
        options.model,
        engines=paths.engines,
        calib=paths.calib,
        progress=_say,
        device=options.device,
    )
    _print_verdict(verdict)
    return 0 if verdict.passed else 1


def _add_engines(commands: Any) -> None:
    parser = commands.add_parser("engines", help="list, verify, roll back and prune built engines")
    parser.set_defaults(run=_engines)
    add_actions(parser)


def _engines(options: argparse.Namespace) -> int:
    from edged import engines

    return engines.run(
        engines.EnginesOptions(
            store=_settings(options).paths.engines,
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


# ------------------------------------------------------------------ asking


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="the broker's (broker.host)")
    parser.add_argument("--port", type=int, help="the broker's (broker.port)")
    parser.add_argument("--device", help="name of the device (device.name)")
    parser.add_argument("--root", help="first levels of every topic (device.root)")


def _endpoint(options: argparse.Namespace) -> Endpoint:
    """From the settings, where the command line says nothing else."""
    from edged.client import Endpoint

    settings = _settings(options)
    broker, password = settings.broker, settings.broker.password
    return Endpoint(
        device=options.device or settings.device.name,
        host=options.host or broker.host,
        port=options.port or broker.port,
        root=options.root or settings.device.root,
        username=broker.username,
        password=password.get_secret_value() if password else None,
        tls=broker.tls,
        ca_file=broker.ca_file,
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "file", metavar="FILE", help=".npy, .npz, .png or .jpg; - is standard input"
    )
    _add_endpoint(parser)
    parser.add_argument("--input", default="input", help="input that a .npy array is for")
    parser.add_argument("--priority", choices=("urgent", "normal", "background"))
    parser.add_argument("--deadline-ms", type=int, help="start nothing later than this")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_infer(commands: Any) -> None:
    parser = commands.add_parser("infer", help="send a file to a device and print the answer")
    _add_request(parser)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait")
    parser.add_argument("--top", type=int, default=3, help="so many best classes of each sample")
    parser.add_argument("--raw", action="store_true", help="print the arrays themselves")
    parser.set_defaults(run=_infer)


def _infer(options: argparse.Namespace) -> int:
    from edged import infer

    return infer.run(
        infer.InferOptions(
            endpoint=_endpoint(options),
            model=options.model,
            file=options.file,
            input_name=options.input,
            timeout_s=options.timeout,
            top=options.top,
            raw=options.raw,
            json=options.json,
            priority=options.priority,
            deadline_ms=options.deadline_ms,
        )
    )


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser("bench", help="send an open-loop load and print what became of it")
    _add_request(parser)
    parser.add_argument("--rate", type=float, default=100.0, help="requests/s; 0: one at a time")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--arrivals", choices=("poisson", "uniform"), default="poisson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1, help="in each request")
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from edged import bench

    return bench.run(
        bench.BenchOptions(
            endpoint=_endpoint(options),
            model=options.model,
            file=options.file,
            input_name=options.input,
            rate_hz=options.rate,
            seconds=options.seconds,
            arrivals=options.arrivals,
            seed=options.seed,
            samples=options.samples,
            deadline_ms=options.deadline_ms,
            priority=options.priority,
            json=options.json,
        )
    )


def _add_top(commands: Any) -> None:
    parser = commands.add_parser("top", help="show what a device's batch timers do")
    _add_endpoint(parser)
    parser.add_argument("--once", action="store_true", help="print one table, then end")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for telemetry")
    parser.set_defaults(run=_top)


def _top(options: argparse.Namespace) -> int:
    from edged import top

    return top.run(top.TopOptions(_endpoint(options), options.once, options.timeout))


def _add_simulate(commands: Any) -> None:
    from edged.simulate.options import add_arguments

    parser = commands.add_parser("simulate", help="say whether a device would carry a load")
    add_arguments(parser)
    parser.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    from edged.simulate import command
    from edged.simulate.options import from_arguments

    return command.run(from_arguments(options), _settings(options).paths.engines)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="build, serve and measure a bundled model, then stop")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--engines", type=Path, default=Path("engines"))
    parser.add_argument("--calib", type=Path, default=Path("calib"))
    parser.add_argument("--rate", type=float, default=200.0, help="requests/s")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from edged import demo

    return demo.run(
        demo.DemoOptions(
            model=options.model,
            engines=options.engines,
            calib=options.calib,
            rate_hz=options.rate,
            seconds=options.seconds,
        )
    )
