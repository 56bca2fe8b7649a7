"""`edged`, with an engine that takes the whole process down when it sees a certain input.

``python -m tests.doubles.mortal_edged serve``: as a fault in a driver would, without a word. A
message to model ``die`` ends the network thread, one to ``hang`` holds it up for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np

from edged import cli
from edged.mqtt import codec
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


def decode(first: int, body: memoryview, version: int = codec.MQTT_5) -> codec.Publish:
    """As the codec does, but for two topics."""
    message = decode_publish(first, body, version)
    if message.topic.endswith("/die"):
        raise SystemExit  # passes by whoever catches an Exception
    if message.topic.endswith("/hang"):
        threading.Event().wait()
    return message


if __name__ == "__main__":
    decode_publish, codec.decode_publish = codec.decode_publish, decode
    onnx.OnnxRunner = MortalRunner  # type: ignore[misc]  # the loader makes these
    sys.exit(cli.main(sys.argv[1:]))
