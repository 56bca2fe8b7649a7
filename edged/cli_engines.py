"""The arguments of ``edged engines``: an action, models, and options at any place."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_ACTIONS = {
    "list": "what is in the store, and whether it fits this device (default)",
    "verify": "compare files with their digests; with --run also answers",
    "rollback": "serve the earlier engine again",
    "prune": "remove all but the engine that serves",
}


def add_actions(parser: argparse.ArgumentParser) -> None:
    """Adds actions and options to the command."""
    parser.set_defaults(action="list", models=[], run_golden=False)
    _add_options(parser, {"json": False, "engines": None, "device": "cuda:0"})
    actions = parser.add_subparsers(metavar="ACTION")
    for name, what in _ACTIONS.items():
        action = actions.add_parser(name, help=what)
        action.add_argument("models", metavar="MODEL", nargs="*", help="default: all")
        action.set_defaults(action=name)
        _add_options(action, dict.fromkeys(("json", "engines", "device"), argparse.SUPPRESS))
        if name == "verify":
            action.add_argument(
                "--run", action="store_true", dest="run_golden", help="run the golden samples too"
            )


def _add_options(parser: argparse.ArgumentParser, default: dict[str, Any]) -> None:
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
