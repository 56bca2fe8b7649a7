"""A paho client as both broker links want it: MQTT 5, our acknowledgements, login, TLS."""

from __future__ import annotations

import ssl

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edged.errors import ConfigError
from edged.settings import BrokerSettings


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
        client.tls_set_context(_tls_context(settings))
    return client


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
            f"ca_file, cert_file or key_file of the broker or the uplink cannot be used: {err}"
        ) from err
    return context
