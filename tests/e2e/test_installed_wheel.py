"""The built wheel in a clean environment: what is in it, and what its command answers."""

from __future__ import annotations

import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

from tests.e2e.installed import CHECKOUT, Installed, environment


def test_the_wheel_holds_the_package_and_nothing_else(installed: Installed) -> None:
    """Every module of edged/ is in the wheel, and no test, model or calibration sample."""
    modules = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "edged").rglob("*.py")}
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]

    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.split("/")[0] for name in names} == {"edged"}
    assert len(licences) == 1


def test_the_installed_package_is_not_the_checkout(installed: Installed, tmp_path: Path) -> None:
    """`import edged` finds the wheel's files, or all further tests here would test the tree."""
    found = subprocess.run(
        [str(installed.python), "-c", "import edged; print(edged.__file__)"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert Path(found.stdout.strip()).is_relative_to(installed.python.parents[1])


def test_version_is_the_packages(installed: Installed, tmp_path: Path) -> None:
    """`edged --version` prints the version that the wheel's metadata states."""
    ended = installed.run("--version", cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert metadata.version("edged") in ended.stdout


def test_help_names_every_command(installed: Installed, tmp_path: Path) -> None:
    """`edged --help` lists the commands that README and docs speak of."""
    ended = installed.run("--help", cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    for command in ("serve", "build", "verify", "infer", "doctor", "bench", "demo"):
        assert command in ended.stdout


def test_an_unknown_command_is_a_usage_error(installed: Installed, tmp_path: Path) -> None:
    """A command that does not exist ends with 2 and one line that names it, without a traceback."""
    ended = installed.run("sreve", cwd=tmp_path)

    assert ended.returncode == 2
    assert "sreve" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_build_leaves_nothing_in_the_home_folder(model_folders: Path) -> None:
    """No file outside the given folders: ONNX Runtime's usage reports, on by default, are off.

    They keep a device id and a database under ~/.cache and send them over the network.
    """
    assert (model_folders / "engines" / "digits" / "built" / "current").is_dir()
    assert list((model_folders / "home").rglob("*")) == []
