"""Options that several commands share, and the settings that come of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edged.settings import Settings


def add_config(parser: argparse.ArgumentParser, default: Any) -> None:
    """Adds ``--config``."""
    parser.add_argument(
        "--config",
        type=Path,
        default=default,
        help="settings file; default: EDGED_CONFIG, else /etc/edged/edged.toml",
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """Reads the settings; ``--engines`` and ``--calib`` win where the command has them.

    Raises:
        ConfigError: a settings file is missing, or a setting is wrong.
    """
    from edged.settings import load_settings

    overrides: dict[str, dict[str, Any]] = {}
    for name in ("engines", "calib"):
        if getattr(options, name, None) is not None:
            overrides.setdefault("paths", {})[name] = getattr(options, name)
    return load_settings(options.config, **overrides)
