"""TLS as a client: how the broker is authenticated, and this client to it."""

from __future__ import annotations

import ssl

from edged.errors import ConfigError
from edged.settings_section import Connection


def client_context(settings: Connection, owner: str) -> ssl.SSLContext:
    """A context that checks the broker's certificate and name, and shows this client's, if any.

    Args:
        settings: names the files; without ``ca_file`` the system's authorities are trusted.
        owner: whose settings they are, for the message.

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
            f"ca_file, cert_file or key_file of {owner} cannot be used: {err}"
        ) from err
    return context
