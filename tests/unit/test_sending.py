"""How rows make batches, what answers mean, how fast a backlog goes, what is sent again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.control_plane import HEAD_OVERHEAD, RECORD_OVERHEAD, batch_json, pack, unpack
from edged.errors import BatchError
from edged.report.draft import Position, Row
from edged.report.sending import (
    Acknowledgement,
    Awaiting,
    Pace,
    Verdict,
    parse_ack,
    split,
    verdict,
)

EPOCH = "0" * 16


def row(number: int, *, stream: str = "event", epoch: str = EPOCH, size: int = 10) -> Row:
    """A row whose body has a size."""
    body = json.dumps("x" * max(0, size - 2)).encode()
    return Row(number, Position(stream, epoch, number), "kind", "", 1.5, 0.0, body)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["event", "result"]),
        st.sampled_from(["a" * 16, "b" * 16]),
        st.integers(2, 3000),
        st.booleans(),
    ),
    max_size=40,
)


@given(ROWS, st.integers(1000, 6000))
def test_batches_hold_every_row_once_in_order_and_within_the_limit(
    drawn: list[tuple[str, str, int, bool]], limit: int
) -> None:
    """One stream, epoch and mode each; only a row that is alone may be larger."""
    rows = [
        row(number, stream=stream, epoch=epoch, size=size)
        for number, (stream, epoch, size, _) in enumerate(drawn)
    ]
    replayed = {number for number, (*_, again) in enumerate(drawn) if again}

    batches = split(rows, limit, replayed)

    assert [each for batch in batches for each in batch.rows] == rows
    for number, batch in enumerate(batches):
        assert len({(each.position.stream, each.position.epoch) for each in batch.rows}) == 1
        assert {each.id in replayed for each in batch.rows} == {batch.mode == "replayed"}
        made = batch_json(batch.head("0" * 36, number), batch.records())
        assert len(made) <= limit or len(batch.rows) == 1
        assert len(made) <= HEAD_OVERHEAD + sum(
            len(each.body) + len(each.kind) + RECORD_OVERHEAD for each in batch.rows
        )


@given(drawn=ROWS, compress=st.booleans())
def test_what_was_packed_is_unpacked(
    drawn: list[tuple[str, str, int, bool]], *, compress: bool
) -> None:
    """Numbers, times, kinds and bodies come back; packing never makes a message larger."""
    rows = [row(number, size=size) for number, (_, _, size, _) in enumerate(drawn, 1)]
    for batch in split(rows, 1 << 20):
        payload, encoding = pack(batch.head("boot", 7), batch.records(), compress=compress)
        found = unpack(payload, encoding)
        assert (found["batch"], found["boot_id"], found["mode"]) == (7, "boot", "live")
        told = [(each["seq"], each["time"], each["kind"]) for each in found["records"]]
        assert told == [(each.position.seq, 1.5, "kind") for each in batch.rows]
        assert [each["body"] for each in found["records"]] == [
            json.loads(each.body) for each in batch.rows
        ]


@pytest.mark.parametrize(
    ("payload", "encoding"),
    [(b"", ""), (b"[]", ""), (b"{}", ""), (b"garbage", "zstd"), (b"{}", "gzip"), (b"[" * 9999, "")],
)
def test_what_is_no_batch_is_refused(payload: bytes, encoding: str) -> None:
    """An error that the control plane can catch, whatever comes."""
    with pytest.raises(BatchError):
        unpack(payload, encoding)


def test_a_compressed_bomb_is_refused() -> None:
    """A small message that would unpack to more than allowed is not unpacked whole."""
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor().compress(b" " * (64 << 20))

    assert len(bomb) < 100_000
    with pytest.raises(BatchError, match="more than"):
        unpack(bomb, "zstd")


@pytest.mark.parametrize(
    ("code", "records", "needs", "expected"),
    [
        (0x00, 3, True, Verdict.TAKEN),
        (0x10, 3, True, Verdict.UNHEARD),
        (0x10, 3, False, Verdict.TAKEN),
        (0x80, 3, True, Verdict.LATER),
        (0x97, 1, True, Verdict.LATER),
        (0x87, 3, True, Verdict.NEVER),
        (0x90, 1, True, Verdict.NEVER),
        (0x99, 3, True, Verdict.SPLIT),
        (0x99, 1, True, Verdict.NEVER),
    ],
)
def test_what_a_puback_means(code: int, records: int, *, needs: bool, expected: Verdict) -> None:
    """Reason codes of MQTT 5, 3.4.2.1."""
    assert verdict(code, records, needs_subscriber=needs) is expected


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 50)), max_size=60), st.floats(1, 1000))
def test_a_backlog_goes_at_its_rate(steps: list[tuple[float, int]], rate: float) -> None:
    """Never more than the rate times the time, and a fifth of a second at once; clocks may jump."""
    pace, now, sent, passed = Pace(rate), 0.0, 0, 0.0
    for forward, wanted in steps:
        now += forward
        passed += max(0.0, forward)
        number = min(wanted, pace.allowed(now))
        assert number >= 0
        pace.spend(number)
        sent += number
    assert sent <= max(1.0, rate * 0.2) + rate * passed + 1e-6


def test_what_is_acknowledged_is_deleted_and_what_is_refused_put_aside() -> None:
    """By the number of the batch; a second time, or an unknown one, is nothing."""
    awaiting = Awaiting(30.0)
    (batch,) = split([row(1), row(2), row(3)], 10_000)
    awaiting.add(9, batch, 0.0)
    ack = Acknowledgement("boot", 9, {2: "odd"})

    assert awaiting.acknowledged(Acknowledgement("boot", 8)) == ([], {})
    assert awaiting.acknowledged(ack) == ([1, 3], {2: "odd"})
    assert awaiting.acknowledged(ack) == ([], {})
    assert awaiting.rows == 0


def test_what_is_not_acknowledged_is_sent_again_ever_more_seldom() -> None:
    """The time doubles with each attempt in vain, up to an hour, and begins anew with a word."""
    awaiting = Awaiting(30.0)
    (batch,) = split([row(1)], 10_000)
    now, waits = 0.0, []
    for number in range(12):
        awaiting.add(number, batch, now)
        began = now
        while not awaiting.overdue(now):
            now += 10.0
        waits.append(now - began)

    assert waits[:4] == [30.0, 60.0, 120.0, 240.0]
    assert waits[-1] == 3600.0
    awaiting.add(99, batch, now)
    awaiting.acknowledged(Acknowledgement("boot", 99))
    awaiting.add(100, batch, now)
    assert awaiting.overdue(now + 30.0) == [batch]


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_an_acknowledgement_or_refused(payload: bytes) -> None:
    """Nothing else is raised."""
    try:
        ack = parse_ack(payload)
    except BatchError:
        return
    assert isinstance(ack.batch, int)
