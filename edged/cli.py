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

from edged import __version__, cli_build  # noqa: E402
from edged.cli_options import add_config, settings_of  # noqa: E402
from edged.errors import ConfigError, EdgedError  # noqa: E402

if TYPE_CHECKING:
    from edged.client import Endpoint


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
    add_config(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_serve,
        cli_build.add_build,
        cli_build.add_verify,
        cli_build.add_engines,
        _add_infer,
        _add_bench,
        _add_top,
        _add_simulate,
        _add_doctor,
        _add_outbox,
        _add_asyncapi,
        _add_demo,
    ):
        add(commands)
    for command in commands.choices.values():  # before the command or after it, as one likes
        add_config(command, default=argparse.SUPPRESS)
    return parser


# ------------------------------------------------------------------ the service


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser("serve", help="run the service until SIGTERM")
    parser.add_argument("--engines", type=Path, help="folder of models (paths.engines)")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from edged.daemon import serve

    return serve(settings_of(options), options.config, _BEGAN)


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

    folder = options.path or settings_of(options).outbox.path
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
        settings = settings_of(options)
    except ConfigError as err:
        return doctor.run(err)
    return doctor.run(settings)


# ------------------------------------------------------------------ asking


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="the broker's (broker.host)")
    parser.add_argument("--port", type=int, help="the broker's (broker.port)")
    parser.add_argument("--device", help="name of the device (device.name)")
    parser.add_argument("--root", help="first levels of every topic (device.root)")


def _endpoint(options: argparse.Namespace) -> Endpoint:
    """From the settings, where the command line says nothing else."""
    from edged.client import Endpoint

    settings = settings_of(options)
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
        cert_file=broker.cert_file,
        key_file=broker.key_file,
        transport=broker.transport,
        websocket_path=broker.websocket_path,
        pool=getattr(options, "pool", None) or "",
    )


def _add_request(parser: argparse.ArgumentParser, file: str | None = None) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "file", metavar="FILE", nargs=file, help=".npy, .npz, .png or .jpg; - is standard input"
    )
    _add_endpoint(parser)
    parser.add_argument("--pool", help="ask one of a pool's devices instead of --device")
    parser.add_argument("--input", default="input", help="input that a .npy array is for")
    parser.add_argument("--priority", choices=("urgent", "normal", "background"))
    parser.add_argument("--deadline-ms", type=float, help="start nothing later than this")
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
    from edged.bench.options import add_arguments

    parser = commands.add_parser(
        "bench",
        help="put load on a device or a pool, and print what became of it",
        description="Sends requests at fixed times, whether or not earlier ones were answered, or "
        "with --rate 0 when answers come; docs/bench.md says what the figures mean. Exits with 0, "
        "or 1 if a request was lost.",
    )
    _add_request(parser, file="?")
    add_arguments(parser)
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from edged import bench
    from edged.bench.options import from_arguments

    return bench.run(from_arguments(options, _endpoint(options)))


def _add_top(commands: Any) -> None:
    parser = commands.add_parser(
        "top",
        help="show what a device's batch timers do",
        description="One line for each model and device, from the telemetry on the broker; "
        "docs/operations.md says what the columns mean.",
    )
    _add_endpoint(parser)
    parser.add_argument("--once", action="store_true", help="print one table, then end")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for telemetry")
    parser.set_defaults(run=_top)


def _top(options: argparse.Namespace) -> int:
    from edged import top

    return top.run(top.TopOptions(_endpoint(options), options.once, options.timeout))


def _add_simulate(commands: Any) -> None:
    from edged.simulate.options import add_arguments

    parser = commands.add_parser(
        "simulate",
        help="say whether a device would carry a load",
        description="Runs the batch timer on simulated time. Say what a batch takes (--model or "
        "--curve), what comes (--rate, --cameras or --trace), and with --slo what is asked. "
        "Example: edged simulate --curve 4+0.8b --cap 16 --cameras 40 --fps 15 --slo 50. Exits "
        "with 0 for yes, 1 for no, 2 for a question that makes no sense.",
    )
    add_arguments(parser)
    parser.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    from edged.simulate import command
    from edged.simulate.options import from_arguments

    return command.run(from_arguments(options), settings_of(options).paths.engines)


def _add_asyncapi(commands: Any) -> None:
    parser = commands.add_parser("asyncapi", help="print the protocol as an AsyncAPI 3 document")
    parser.set_defaults(run=_asyncapi)


def _asyncapi(_options: argparse.Namespace) -> int:
    from edged.asyncapi import asyncapi_json

    print(asyncapi_json(), end="")
    return 0


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
