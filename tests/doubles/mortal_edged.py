"""`edged`, with an engine that takes the whole process down when it sees a certain input.

``python -m tests.doubles.mortal_edged serve``: as a fault in a driver would, without a word.
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

from edged import cli
from edged.runners import Completion, onnx

DEADLY = -4
"""An index that the model `tests.doubles.engines.picker` takes, and nobody sends by chance."""


class MortalRunner(onnx.OnnxRunner):
    """Dies of one value."""

    def _run(self, lane: int, samples: int) -> Completion:
        for rows in self.staging(lane).values():
            if np.any(rows[:samples] == DEADLY):
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._run(lane, samples)


if __name__ == "__main__":
    onnx.OnnxRunner = MortalRunner  # type: ignore[misc]  # the loader makes these
    sys.exit(cli.main(sys.argv[1:]))
