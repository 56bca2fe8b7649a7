"""Engines that several of these modules serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.build.pipeline import build_model
from tests.doubles import engines
from tests.doubles.service import copy_model


@pytest.fixture(scope="session")
def served_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of engines: ``digits`` as it is built, and four that no build would install.

    ``picker`` fails on some inputs, ``strict`` is the same and lets no infinity through,
    ``unproven`` has no pass, ``foreign`` is for another device.
    """
    home = tmp_path_factory.mktemp("served")
    models, calib = copy_model("digits", home)
    build_model("digits", engines=models, calib=calib, precision="int8")
    engines.install_picker(models, "picker")
    engines.install_picker(models, "strict", refuse_nonfinite=True)
    engines.install_picker(models, "unproven", passed=False)
    engines.install_picker(models, "foreign", bound_to={"runner": "onnx", "arch": "vax"})
    return models
