"""Where a device is reached, and the messages that go there and come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edged import protocol
from edged.mqtt import codec
from edged.mqtt.address import Transport


@dataclass(frozen=True)
class Endpoint:
    """Where a device is reached.

    Attributes:
        device: its name, a level of every topic; not needed where a pool is asked.
        host: the broker's; with transport ``unix`` the path of its socket.
        port: the broker's MQTT 5 listener.
        root: first levels of every topic.
        username: None: no login.
        password: for the login.
        tls: encrypt, and check the broker's certificate.
        ca_file: certificate authorities instead of the system's; implies tls.
        cert_file: this client's certificate, with ``key_file``; implies tls.
        key_file: its key.
        transport: ``tcp``, ``websockets`` or ``unix``.
        websocket_path: of the WebSocket's URL.
        pool: its name, to ask one of a pool's devices instead of ``device``.
    """

    device: str = ""
    host: str = "127.0.0.1"
    port: int = 1883
    root: str = protocol.DEFAULT_ROOT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    transport: Transport = "tcp"
    websocket_path: str = "/mqtt"
    pool: str = ""

    @property
    def topics(self) -> protocol.Topics | protocol.PoolTopics:
        """Topics of the device, or of the pool.

        Raises:
            ValueError: a name is no topic level.
        """
        if self.pool:
            return protocol.PoolTopics(self.root, self.pool)
        return protocol.Topics(self.root, self.device)

    def __str__(self) -> str:
        return f"pool {self.pool!r}" if self.pool else f"device {self.device!r}"


@dataclass(frozen=True)
class Delivery:
    """One PUBLISH that the broker delivered; absent properties are empty.

    Attributes:
        topic: topic name.
        payload: the body.
        correlation: Correlation Data.
        content_type: Content Type.
        user: user properties; of a name given twice the last one.
        received: monotonic seconds, stamped on the link's thread.
    """

    topic: str
    payload: bytes
    correlation: bytes
    content_type: str
    user: Mapping[str, str]
    received: float


@dataclass(frozen=True)
class Publication:
    """One PUBLISH to send; empty or None properties are left out."""

    topic: str
    payload: bytes
    response_topic: str
    correlation: bytes
    content_type: str
    user: Sequence[tuple[str, str]] = ()
    expiry_s: int | None = None

    def head(self, mid: int) -> bytes:
        """What is sent before the payload.

        Args:
            mid: packet identifier.

        Raises:
            ValueError: the topic is none, or something is too long for its field.
        """
        packed = codec.encode_properties(
            None if self.expiry_s is None else max(1, self.expiry_s),
            self.content_type,
            self.correlation,
            self.user,
            self.response_topic,
        )
        return codec.encode_publish(self.topic, packed, len(self.payload), mid=mid)
