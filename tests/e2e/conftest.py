"""The program as a user gets it: the wheel, built once, and models whose engine it has built."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.e2e.installed import CHECKOUT, Installed, environment, folder_settings


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, built from the checkout and installed without its dependencies.

    The dependencies come from the environment that runs the tests, so that they are the locked
    ones and nothing is fetched; that environment's own editable edged stays invisible, because a
    path named in a .pth file is not searched for further .pth files.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(CHECKOUT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")

    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", "--no-input"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, env=environment())
    (site,) = home.glob("lib/python*/site-packages")
    (site / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return Installed(wheel, python, home / "bin" / "edged")


@pytest.fixture(scope="session")
def model_folders(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``engines`` and ``calib`` of digits; the wheel has built its engine."""
    home = tmp_path_factory.mktemp("models")
    for name in ("engines", "calib"):
        shutil.copytree(
            CHECKOUT / name / "digits",
            home / name / "digits",
            ignore=shutil.ignore_patterns("built", "__pycache__"),
        )
    (home / "home").mkdir()
    env = folder_settings(home) | {"HOME": str(home / "home")}
    built = installed.run("build", "digits", cwd=home, env=env)
    if built.returncode != 0:
        pytest.fail(f"edged build digits ended with {built.returncode}:\n{built.stderr}")
    return home
