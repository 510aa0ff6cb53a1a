from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_gateway.config import Limits, Settings, serving_token
from lorafleet_gateway.errors import ConfigError


def test_the_contracts_bounds_are_the_defaults() -> None:
    limits = Limits()

    assert (limits.body_bytes, limits.place_seconds, limits.resume_seconds) == (8 * 2**20, 5.0, 120.0)
    assert limits.poll_seconds <= 0.25
    assert (limits.load_seconds, limits.retire_seconds) == (0.2, 600.0)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"fleet": Path("nowhere")}, "--fleet 'nowhere' is not a folder"),
        ({"port": 70000}, "--port 70000"),
        ({"serving_token": "a b"}, "LORAFLEET_SERVING_TOKEN must be ASCII"),
    ],
)
def test_a_wrong_setting_is_named_and_a_token_is_not_shown(
    tmp_path: Path, fields: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as raised:
        Settings(**{"fleet": tmp_path, **fields}).check()  # type: ignore[arg-type]

    assert "a b" not in str(raised.value)


def test_the_token_comes_from_the_environment() -> None:
    assert serving_token({"LORAFLEET_SERVING_TOKEN": "t"}) == "t"
    assert serving_token({}) == ""
