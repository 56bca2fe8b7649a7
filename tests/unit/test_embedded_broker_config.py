"""The TOML that the embedded broker gets."""

from __future__ import annotations

import sys

from edged.embedded_broker import MAX_PAYLOAD_BYTES, config_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_config_listens_on_loopback_with_both_versions_and_bounded_memory() -> None:
    """Both listeners are loopback, take 16 MB, and a filter's log is at most 32 MB."""
    config = tomllib.loads(config_text(1883, 1884))
    assert config["v5"]["1"]["listen"] == "127.0.0.1:1883"
    assert config["v4"]["1"]["listen"] == "127.0.0.1:1884"
    for version in ("v4", "v5"):
        limits = config[version]["1"]["connections"]
        assert limits["max_payload_size"] == MAX_PAYLOAD_BYTES == 16 * 2**20
    router = config["router"]
    assert router["max_segment_size"] * router["max_segment_count"] == 32 * 2**20
