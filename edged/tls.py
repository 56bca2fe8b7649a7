"""TLS as a client: how the broker is authenticated, and this client to it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Protocol

from edged.errors import ConfigError


class TlsFiles(Protocol):
    """What names the files; settings and a client's endpoint do."""

    @property
    def ca_file(self) -> Path | None: ...  # noqa: D102  # as in the sections
    @property
    def cert_file(self) -> Path | None: ...  # noqa: D102
    @property
    def key_file(self) -> Path | None: ...  # noqa: D102


def client_context(files: TlsFiles, owner: str) -> ssl.SSLContext:
    """A context that checks the broker's certificate and name, and shows this client's, if any.

    Args:
        files: names them; without ``ca_file`` the system's authorities are trusted.
        owner: whose settings they are, for the message.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=str(files.ca_file) if files.ca_file else None)
        if files.cert_file:
            context.load_cert_chain(files.cert_file, files.key_file)
    except OSError as err:  # ssl.SSLError is one
        raise ConfigError(
            f"ca_file, cert_file or key_file of {owner} cannot be used: {err}"
        ) from err
    return context
