"""kill -9 of daemon and broker under load: the short form of tests/bench/chaos.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import chaos


@pytest.mark.timeout(300)
def test_nothing_is_lost_whoever_is_killed(model_folders: Path, tmp_path: Path) -> None:
    """Twice each, at 100 requests/s: every request is answered, and answered with its own result.

    Only kills make answers come twice, and only a broker that has not written what it took makes a
    requester send again.
    """
    storm = chaos.Storm(kills=2, rate=100.0, quiet_s=5.0)
    result = chaos.run(tmp_path, model_folders / "engines", storm)
    assert chaos.failures(result) == []
    assert result["exit_codes"] == [0, 0]
    assert result["daemon_killed"]["overtaken_in_a_client"] == 0
