"""``edged doctor``: what this machine lacks for serving, what that means, and how to mend it.

Each check is a function of the settings or of the root of a file system that returns lines. None
of them raises, and each package is imported in a process of its own: a broken native library shows
up as a line of the table and not as the end of it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edged.device import ROOT, DeviceInfo, read_device
from edged.doctor_line import AS_SERVICE, Line, State
from edged.doctor_reports import check_outbox, check_uplink
from edged.engine_store import EngineStore
from edged.errors import ConfigError, EngineRefusedError
from edged.runners import fingerprint
from edged.settings import BrokerSettings, PathSettings, ServeSettings, Settings

_IMPORT_TIMEOUT_S = 60.0
_PROBE = (
    "import importlib, sys; module = importlib.import_module(sys.argv[1]); "
    "print(getattr(module, '__version__', 'installed'))"
)
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def run(settings: Settings | ConfigError, *, root: Path = ROOT) -> int:
    """Looks at everything and prints the table to standard output; never raises.

    Args:
        settings: what `edged.settings.load_settings` returned, or the error that it raised.
        root: root of the file system in which device, driver and systemd are looked for.

    Returns:
        0 when serving is possible, 78 when the settings are wrong, else 69; as ``edged serve``.
    """
    lines = [line for name, check in _checks(settings, root) for line in _guarded(name, check)]
    for line in lines:
        print(f"{line.state:<8} {line.what:<14} {line.found}")
        if line.state != "ok":
            print(f"{'':<24}means: {line.means}\n{'':<24}mend:  {line.mend}")
    blocking = [line.what for line in lines if line.state == "missing"]
    print(
        f"\nserving is not possible: {', '.join(blocking)}" if blocking else "\nserving is possible"
    )
    if isinstance(settings, ConfigError):
        return os.EX_CONFIG
    return os.EX_UNAVAILABLE if blocking else os.EX_OK


def _checks(
    settings: Settings | ConfigError, root: Path
) -> list[tuple[str, Callable[[], list[Line]]]]:
    device = read_device(root)
    checks: list[tuple[str, Callable[[], list[Line]]]] = [
        ("settings", lambda: check_settings(settings, os.environ)),
        ("device", lambda: check_device(device)),
        ("packages", check_packages),
        ("NVIDIA driver", lambda: check_driver(device)),
        ("systemd", lambda: check_systemd(root)),
        ("clock", lambda: check_clock(time.time(), synchronised=_clock_synchronised())),
    ]
    if isinstance(settings, Settings):
        checks += [
            ("folders", lambda: check_folders(settings.paths)),
            ("engines", lambda: check_engines(settings.paths, settings.serve)),
            ("broker", lambda: check_broker(settings.broker)),
            ("outbox", lambda: check_outbox(settings.outbox, settings.uplink)),
            ("uplink", lambda: check_uplink(settings.uplink, settings.broker)),
        ]
    return checks


def _guarded(name: str, check: Callable[[], list[Line]]) -> list[Line]:
    try:
        return check()
    except Exception as err:  # the table must go on, whatever this machine is like
        found = f"could not be checked: {type(err).__name__}: {err}"
        return [Line("warn", name, found, "unknown", "report this line as a fault of edged doctor")]


# ------------------------------------------------------------------ the checks


def check_settings(settings: Settings | ConfigError, environ: Mapping[str, str]) -> list[Line]:
    """Whether the settings are valid, where they come from, and names that look like settings."""
    if isinstance(settings, ConfigError):
        means = "edged serve ends with exit code 78; engines and broker are not looked at here"
        return [Line("missing", "settings", settings.message, means, "see docs/settings.md")]
    file = type(settings).model_config.get("toml_file")
    means = "it changes nothing; a setting may have been meant"
    return [
        Line("ok", "settings", f"valid, from {file or 'environment and defaults, no file'}"),
        *(
            Line("warn", "environment", f"{name} names no setting", means, "see docs/settings.md")
            for name in sorted(environ)
            if name.upper().startswith("EDGED_") and name.upper() not in _setting_names()
        ),
    ]


def _setting_names() -> set[str]:
    """Every name in the environment that edged reads."""
    names = {"EDGED_CONFIG", "EDGED_REQUIRE_GPU"}
    for section, field in Settings.model_fields.items():
        names.add(f"EDGED_{section}".upper())
        fields = getattr(field.annotation, "model_fields", {})
        names |= {f"EDGED_{section}__{name}".upper() for name in fields}
    return names


def check_device(device: DeviceInfo) -> list[Line]:
    """What this device is; for reading, nothing depends on it."""
    memory = device.memory_bytes and f"{device.memory_bytes / 2**30:.1f} GiB"
    parts = [device.arch, device.os, device.cpus and f"{device.cpus} CPUs", memory, device.board]
    parts += [device.l4t and f"L4T {device.l4t}", *(device.gpus or ())]
    return [Line("ok", "device", ", ".join(str(part) for part in parts if part))]


def check_packages() -> list[Line]:
    """Python and the packages that serving may need."""
    onnx_means = "engines for ONNX Runtime cannot run; see the line of each engine"
    gpu_means = "engines for the GPU cannot run; those for ONNX Runtime on the CPU can"
    return [
        Line("ok", "Python", f"{platform.python_version()}, {sys.executable}"),
        _package("numpy", ("numpy",), "edged does not start", "pip install numpy", "missing"),
        _package("onnxruntime", ("onnxruntime",), onnx_means, "pip install 'edged[onnx]'"),
        _package(
            "TensorRT",
            ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"),
            gpu_means,
            "on a Jetson: sudo apt-get install nvidia-jetpack, and a virtual environment made with "
            "--system-site-packages; elsewhere: pip install 'edged[rtx]'",
        ),
        _package("pycuda", ("pycuda.driver",), gpu_means, "pip install 'edged[cuda]'"),
        _package(
            "Pillow",
            ("PIL",),
            "requests as image/png and image/jpeg are refused; tensors are not affected",
            "pip install 'edged[images]'",
        ),
    ]


def _package(
    what: str, modules: Iterable[str], means: str, mend: str, severity: State = "warn"
) -> Line:
    """The first of the modules that can be imported, or why none can."""
    broken = ""
    for module in modules:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        imported, said = _import_apart(module)
        if imported:
            return Line("ok", what, f"{said} ({module})")
        broken = broken or f"{module} is installed but cannot be imported: {said}"
    return Line(severity, what, broken or "not installed", means, mend)


def _import_apart(module: str) -> tuple[bool, str]:
    """Imports a module in a process of its own; whether it could, and its version or the error."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, module],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        return False, str(err)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, said[-1] if said else f"exit code {done.returncode}"


def check_driver(device: DeviceInfo) -> list[Line]:
    """The NVIDIA kernel driver."""
    if device.driver:
        return [Line("ok", "NVIDIA driver", device.driver)]
    if device.is_jetson:
        # Up to L4T 35 a Jetson's integrated GPU has a driver without a version file.
        return [Line("ok", "NVIDIA driver", f"part of L4T {device.l4t or '(release unknown)'}")]
    means = "no GPU is used; engines for ONNX Runtime run on the CPU"
    mend = "where there is an NVIDIA GPU: sudo ubuntu-drivers install (Ubuntu), then restart"
    return [Line("warn", "NVIDIA driver", "not loaded", means, mend)]


def check_systemd(root: Path) -> list[Line]:
    """Whether systemd runs here, and whether the unit is installed."""
    if not (root / "run/systemd/system").is_dir():
        means = "edged serve works, but nothing restarts or watches it"
        mend = "run it under systemd, or under the supervisor that this machine has"
        return [Line("warn", "systemd", "does not run here", means, mend)]
    folders = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
    if any((root / folder / "systemd/system/edged.service").exists() for folder in folders):
        return [Line("ok", "systemd", "runs, edged.service is installed")]
    means = "edged serve works from a terminal, but not as a service"
    return [Line("warn", "systemd", "runs without edged.service", means, "sudo make install")]


def check_clock(now: float, *, synchronised: bool | None) -> list[Line]:
    """Whether the clock can be right.

    Args:
        now: Unix seconds.
        synchronised: what the kernel says; None where it cannot be asked.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    means = "TLS may refuse valid certificates, and times in logs and telemetry are wrong"
    mend = "sudo timedatectl set-ntp true"
    if now < Path(__file__).stat().st_mtime:
        return [Line("warn", "clock", f"{stamp}, before edged was installed", means, mend)]
    if not synchronised:
        known = "not synchronised" if synchronised is False else "not known to be synchronised"
        return [Line("warn", "clock", f"{stamp}, {known}", means, mend)]
    return [Line("ok", "clock", f"{stamp}, synchronised")]


def _clock_synchronised() -> bool | None:
    """Asks adjtimex(2), which knows of every time daemon; it changes nothing with modes = 0."""
    timex = ctypes.create_string_buffer(512)  # struct timex has 208 bytes; zeros are modes = 0
    try:
        state = ctypes.CDLL(None).adjtimex(timex)
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def check_folders(paths: PathSettings) -> list[Line]:
    """Whether engines can be read, and engines and calibration sets be written."""
    means = "serving is not affected, but edged build cannot install what it builds"
    lines = []
    for what, path in (("engines folder", paths.engines), ("calib folder", paths.calib)):
        mend = f"sudo install -d -o edged -g edged {path}; {AS_SERVICE}"
        if not os.access(path, os.R_OK | os.X_OK) or not path.is_dir():
            state: State = "missing" if path == paths.engines else "warn"
            known = "cannot be read" if os.path.lexists(path) else "does not exist"
            broken = "no engine can be loaded" if state == "missing" else means
            lines.append(Line(state, what, f"{path} {known}", broken, mend))
        elif not os.access(path, os.W_OK):
            lines.append(Line("warn", what, f"{path} cannot be written", means, mend))
        else:
            lines.append(Line("ok", what, f"{path} can be written"))
    return lines


def check_engines(paths: PathSettings, serve: ServeSettings) -> list[Line]:
    """Which engines could be loaded; one that works is enough to serve."""
    store = EngineStore(paths.engines)
    try:
        names = list(serve.models) or store.models()
    except OSError as err:
        means = "no engine can be loaded"
        return [Line("missing", "engines", f"{paths.engines}: {err.strerror}", means, AS_SERVICE)]
    if not names:
        means = "there is nothing to serve; edged serve ends with exit code 69"
        return [Line("missing", "engines", f"none in {paths.engines}", means, "edged build MODEL")]
    found = [(name, _engine_problem(store, name)) for name in names]
    severity: State = "warn" if any(not problem for _, problem in found) else "missing"
    means = "requests for this model are not served"
    return [
        Line(severity, f"engine {name}", problem, means, f"edged build {name}")
        if problem
        else Line("ok", f"engine {name}", _engine_facts(store, name))
        for name, problem in found
    ]


def _engine_problem(store: EngineStore, name: str) -> str:
    """Why an engine may not be loaded, "" if it may."""
    try:
        kind = store.current(name).manifest.runner
        store.usable(name, fingerprint(kind)).read()
    except EngineRefusedError as err:
        return err.message
    return ""


def _engine_facts(store: EngineStore, name: str) -> str:
    manifest = store.current(name).manifest
    return f"usable: {manifest.precision}, {manifest.runner}, batches up to {manifest.max_batch}"


def check_broker(broker: BrokerSettings) -> list[Line]:
    """Whether the broker takes a connection; MQTT, WebSocket, TLS and the login are not tried."""
    unix = broker.transport == "unix"
    where = broker.host if unix else f"{broker.host}:{broker.port}"
    try:
        if unix:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(broker.connect_timeout_s)
                probe.connect(broker.host)
        else:
            with socket.create_connection((broker.host, broker.port), broker.connect_timeout_s):
                pass
    except (OSError, ValueError) as err:  # a name that is too long is a UnicodeError
        means = "no request comes in; edged serve starts all the same and waits for the broker"
        mend = "sudo systemctl start mosquitto, or set [broker] host and port to where it listens"
        return [Line("missing", "broker", f"{where} not reachable: {err}", means, mend)]
    return [Line("ok", "broker", f"{where} takes connections (MQTT and login not tried)")]
