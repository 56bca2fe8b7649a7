"""A bare paho echo in the place of a device: what MQTT itself costs, as the reference.

``python tests/bench/echo.py HOST PORT DEVICE REPLY HEADER_LENGTH`` answers every request to DEVICE
with the bytes in the file REPLY, from paho's own thread, and prints one line when it listens.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged import protocol


class Echo:
    """Answers requests with always the same body.

    Args:
        topics: the device it stands for.
        reply: the body.
        header_length: bytes of the body's V2 header.
    """

    def __init__(self, topics: protocol.Topics, reply: bytes, header_length: str) -> None:
        self._topics = topics
        self._reply = reply
        self._user = [(protocol.STATUS, "200"), (protocol.HEADER_LENGTH, header_length)]

    def run(self, host: str, port: int) -> None:
        """Serves until the process is ended."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.connect(host, port)
        client.loop_forever()

    @staticmethod
    def _on_socket_open(_client: mqtt.Client, _data: Any, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(self, client: mqtt.Client, *_rest: Any) -> None:
        client.subscribe([(topic, 1) for topic in self._topics.subscriptions])

    @staticmethod
    def _on_subscribe(*_rest: Any) -> None:
        sys.stdout.write("listening\n")
        sys.stdout.flush()

    def _on_message(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        asked = message.properties
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
        properties.CorrelationData = getattr(asked, "CorrelationData", b"")
        properties.ContentType = protocol.OCTET_STREAM
        properties.MessageExpiryInterval = 1
        properties.UserProperty = self._user
        client.publish(
            getattr(asked, "ResponseTopic", ""), self._reply, qos=1, properties=properties
        )


if __name__ == "__main__":
    _, host, port, device, reply, header_length = sys.argv
    topics = protocol.Topics(protocol.DEFAULT_ROOT, device)
    Echo(topics, Path(reply).read_bytes(), header_length).run(host, int(port))
