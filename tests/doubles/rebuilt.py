"""The bundled ``digits`` in a store of its own, built anew with another calibration."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from edged.build.pipeline import build_model
from tests.doubles import digits
from tests.doubles.service import copy_model

METHODS = ("mse", "minmax")


class Rebuilt:
    """A store with ``digits``; each build is another engine, and takes its place.

    Attributes:
        engines: folder of the store.
        references: what each version computes of the held-out images, alone.
    """

    def __init__(self, home: Path) -> None:
        self.engines, self._calib = copy_model("digits", home)
        self._recipe = self.engines / "digits" / "recipe.toml"
        self._text = self._recipe.read_text(encoding="utf-8")
        self._images = digits.images()
        self.references: dict[str, digits.Logits] = {}

    def build(self, method: str) -> str:
        """Calibrates, builds and installs; the version."""
        line = f'[calibrate]\nmethod = "{method}"\n'
        self._recipe.write_text(re.sub(r"\[calibrate\]\n", line, self._text), encoding="utf-8")
        result = build_model("digits", engines=self.engines, calib=self._calib, precision="int8")
        version = result.engine.manifest.key[:12]
        self.references.setdefault(version, digits.logits(self.engines, self._images))
        return version

    def built(self) -> Path:
        """The folder of the current engine."""
        return (self.engines / "digits" / "built" / "current").resolve()

    def is_right(self, version: str, image: int, logits: digits.Logits) -> bool:
        """Whether these are what this version computes, and no other one."""
        off = {
            name: float(np.abs(reference[image] - logits).max())
            for name, reference in self.references.items()
        }
        return off[version] < 1e-3 and all(
            name == version or other > 1e-3 for name, other in off.items()
        )
