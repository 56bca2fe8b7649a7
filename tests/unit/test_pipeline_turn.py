"""A turn of the pipeline that fails ends the service, since what was in hand would be lost."""

from __future__ import annotations

import pytest

from edged.metrics import Metrics
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.request import LinkDown, LinkUp
from tests.doubles.serving import TOPICS


def test_a_fault_in_a_turn_is_a_dead_thread() -> None:
    """The link catches and counts it; `dead` names the thread, and the daemon ends the process."""

    def fail(_change: LinkUp | LinkDown) -> None:
        raise RuntimeError("a fault of ours")

    pipeline = Pipeline(
        Decoder(TOPICS, lambda _name: None),
        {},
        WaitingRoom({}, Admission(1).refusal),
        Metrics(),
        Watchers(lambda _outcome, _status: None, fail),
        dead_topic=TOPICS.dead,
    )
    pipeline.link_changed(LinkDown(1, "before the start nothing is looked at"))
    pipeline.turn()
    pipeline.start(Sender(lambda _reply: None, lambda _receipt: True, lambda: None), [])
    assert pipeline.dead() is None
    with pytest.raises(RuntimeError):
        pipeline.turn()
    assert pipeline.dead() == "mqtt-net"
    pipeline.stop()
