"""A paho client as both broker links want it: MQTT 5, our acknowledgements, login, TLS."""

from __future__ import annotations

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edged.settings import BrokerSettings
from edged.tls import client_context


def new_client(settings: BrokerSettings, client_id: str) -> paho.Client:
    """A client that is not connected yet.

    Args:
        settings: the ``[broker]`` section, or the same for another broker.
        client_id: stable over restarts, so that the broker keeps the session.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=paho.MQTTv5,
        manual_ack=True,
        reconnect_on_failure=False,
    )
    client.connect_timeout = settings.connect_timeout_s
    client.max_inflight_messages_set(65535)  # the window is ours: whoever publishes keeps to it
    if settings.username is not None:
        password = settings.password
        client.username_pw_set(settings.username, password.get_secret_value() if password else None)
    if settings.tls:
        client.tls_set_context(client_context(settings, "the broker or the uplink"))
    return client
