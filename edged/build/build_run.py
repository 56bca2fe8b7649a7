"""One build that is going on: its sources, and how its stages tell, time and name their errors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edged.build.dataset import Dataset, load_dataset
from edged.build.identity import sha256, source_digests
from edged.build_options import WantedPrecision
from edged.errors import BuildError, BuildStoppedError, ConfigError, EngineError, EngineRefusedError
from edged.recipe import MODEL_NAME, Recipe, load_recipe

Progress = Callable[[str, float], None]
"""Called with a sentence and the share of the build that is done, 0 to 1."""


@dataclass
class BuildRun:
    """One build.

    Attributes:
        recipe: with the precision that was asked for.
        model: the ONNX file's content, which is the recipe's.
        dataset: calibration and held-out samples.
        calib: ``calib/<model>``.
        progress: told what goes on.
        seconds: what each stage took.
    """

    recipe: Recipe
    model: bytes
    dataset: Dataset
    calib: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    _furthest: float = 0.0
    _recipe_digest: str = ""

    def __repr__(self) -> str:
        return f"<BuildRun {self.recipe.name}, {len(self.seconds)} stages done>"

    def sources(self) -> dict[str, str]:
        """Digests of the files as they are now; ranges.json changes during a build."""
        digests = source_digests(self.recipe, self.dataset, self.calib)
        # The recipe that this build goes by, even if the file is edited meanwhile.
        self._recipe_digest = self._recipe_digest or digests["recipe"]
        return digests | {"recipe": self._recipe_digest}

    def tell(self, sentence: str, share: float) -> None:
        """Passes progress on; a second attempt does not go back."""
        self._furthest = max(self._furthest, share)
        self.progress(sentence, self._furthest)

    @contextmanager
    def stage(self, name: str, sentence: str, share: float) -> Iterator[None]:
        """Tells that a stage begins, times it, and names it in its errors."""
        self.tell(sentence, share)
        begun = time.monotonic()
        try:
            yield
        except BuildStoppedError as err:
            raise BuildStoppedError(f"{name}: {err.message}") from err
        except (BuildError, EngineError, EngineRefusedError) as err:
            raise BuildError(f"{name}: {err.message}") from err
        finally:
            spent = self.seconds.get(name, 0.0) + time.monotonic() - begun
            self.seconds[name] = round(spent, 3)


def open_build(
    name: str,
    engines: Path,
    calib: Path,
    progress: Progress,
    precision: WantedPrecision | None = None,
) -> BuildRun:
    """Reads the sources of a build.

    Args:
        name: the model's name.
        engines: recipes and models, ``engines/<name>``.
        calib: calibration sets, ``calib/<name>``.
        progress: told what goes on.
        precision: instead of the recipe's.

    Raises:
        ConfigError: the recipe is missing or wrong.
        BuildError: the model or the samples are.
    """
    if not re.match(MODEL_NAME, name):
        raise ConfigError(f"{name[:80]!r} is no model name; allowed: {MODEL_NAME}")
    recipe = load_recipe(engines / name)
    if precision is not None:
        # Whoever asks for a comparison on the command line wants one.
        fallback = recipe.engine.fallback or precision == "auto"
        update = {"precision": precision, "fallback": fallback}
        options = recipe.engine.model_copy(update=update)
        recipe = recipe.model_copy(update={"engine": options})
    try:
        model = recipe.model_path.read_bytes()
    except OSError as err:
        raise BuildError(
            f"model {name!r}: {recipe.model.file} cannot be read ({err.strerror}); "
            f"get it from: {recipe.model.source or 'where the recipe was made'}"
        ) from err
    if (digest := sha256(model)) != recipe.model.sha256:
        raise BuildError(
            f"model {name!r}: {recipe.model.file} has sha256 {digest}, the recipe says "
            f"{recipe.model.sha256}; restore the file, or put its digest into the recipe"
        )
    return BuildRun(recipe, model, load_dataset(calib / name, recipe.input), calib / name, progress)
