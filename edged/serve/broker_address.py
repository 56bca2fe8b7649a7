"""The ``[broker]`` section as the MQTT client wants it: where to, and what to ask for."""

from __future__ import annotations

from edged.mqtt.address import Address
from edged.mqtt.codec import MQTT_3, MQTT_5
from edged.mqtt.control import Connect, Will
from edged.settings import BrokerSettings
from edged.tls import client_context

VERSIONS = {"5": MQTT_5, "3.1.1": MQTT_3}
MAX_PACKET_BYTES = 268_435_455
"""What MQTT allows. A broker of 3.1.1 is not told our own limit, so what it sends must be taken."""


def address_of(settings: BrokerSettings) -> Address:
    """Where the broker listens.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """
    return Address(
        settings.host,
        settings.port,
        settings.transport,
        client_context(settings, "the broker") if settings.tls else None,
        settings.websocket_path,
    )


def connect_of(settings: BrokerSettings, client_id: str, will: Will) -> Connect:
    """What to ask the broker for."""
    version = VERSIONS[settings.mqtt_version]
    password = settings.password.get_secret_value() if settings.password else None
    return Connect(
        client_id,
        will,
        version,
        keepalive_s=settings.keepalive_s,
        session_expiry_s=settings.session_expiry_s,
        receive_maximum=settings.receive_maximum,
        max_packet_bytes=settings.max_packet_bytes if version == MQTT_5 else MAX_PACKET_BYTES,
        username=settings.username,
        password=password if settings.username is not None else None,
    )
