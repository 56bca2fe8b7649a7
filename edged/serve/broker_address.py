"""The ``[broker]`` section as the MQTT client wants it: where to, and what to ask for."""

from __future__ import annotations

import ssl

from edged.errors import ConfigError
from edged.mqtt.address import Address
from edged.mqtt.codec import MQTT_3, MQTT_5
from edged.mqtt.control import Connect, Will
from edged.settings import BrokerSettings

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
        _tls_context(settings) if settings.tls else None,
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


def _tls_context(settings: BrokerSettings) -> ssl.SSLContext:
    """How the broker is authenticated, and this client to it.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """
    try:
        context = ssl.create_default_context(
            cafile=str(settings.ca_file) if settings.ca_file else None
        )
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except OSError as err:  # ssl.SSLError is one
        raise ConfigError(
            f"broker.ca_file, broker.cert_file or broker.key_file cannot be used: {err}"
        ) from err
    return context
