"""The settings of one fleet on this machine, from the command line and the environment, checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorafleet_operator.errors import UsageError
from lorafleet_operator.local import commands, state_folder
from lorafleet_operator.logs import LogFormat

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080


@dataclass(frozen=True, slots=True)
class Settings:
    """What `lorafleet up` runs with. Intervals are seconds."""

    paths: tuple[Path, ...]
    state_dir: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    log_format: LogFormat = "console"
    runtime_command: tuple[str, ...] = field(default_factory=lambda: commands.program({}, "", "lorafleet_runtime"))
    gateway_command: tuple[str, ...] = field(default_factory=lambda: commands.program({}, "", "lorafleet_gateway"))
    scan_seconds: float = 0.25  # between two looks at the YAML files
    poll_seconds: float = 0.25  # between two looks at a runtime's state
    usage_seconds: float = 5.0  # between two looks at what tenants have received
    resync_seconds: float = 2.0  # a pass happens at least this often, and sources are looked at again
    drain_seconds: float = 5.0  # how long running requests may take to finish when the fleet ends

    @property
    def gateway_url(self) -> str:
        """Where clients on this machine reach the gateway."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"


def settings(
    paths: list[str], *, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, state_dir: str | None = None,
    log_format: LogFormat = "console", env: Mapping[str, str] = os.environ,
) -> Settings:  # fmt: skip
    """Settings from options and environment. Raises UsageError for what cannot be followed."""
    if not 0 < port < 65536:
        raise UsageError(f"--port {port}: a TCP port lies between 1 and 65535")
    return Settings(
        paths=tuple(Path(path) for path in paths),
        state_dir=Path(state_dir).expanduser() if state_dir else state_folder.default_path(env),
        host=host,
        port=port,
        log_format=log_format,
        runtime_command=commands.program(env, commands.RUNTIME_VARIABLE, "lorafleet_runtime"),
        gateway_command=commands.program(env, commands.GATEWAY_VARIABLE, "lorafleet_gateway"),
    )
