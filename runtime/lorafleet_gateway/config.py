"""What one gateway is told at start, checked once. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorafleet_gateway.errors import ConfigError

LogFormat = Literal["console", "json"]
SERVING_TOKEN = "LORAFLEET_SERVING_TOKEN"  # the variable's name; its value never goes through argv


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound the gateway keeps. The defaults are the contract's; tests shorten them."""

    body_bytes: int = 8 * 1024 * 1024
    event_bytes: int = 8 * 1024 * 1024  # one event of a replica's stream
    read_bytes: int = 32 * 1024  # per stream, read ahead of a slow client before the replica is made to wait
    place_seconds: float = 5.0  # to find a first replica that holds the model ready
    resume_seconds: float = 120.0  # to find another one after a replica was lost: an engine on a GPU starts in a minute
    connect_seconds: float = 2.0
    backoff_seconds: float = 0.05  # the first pause when no replica is left to try; doubles
    backoff_most_seconds: float = 1.0
    avoid_seconds: float = 1.0  # how long others keep away from a replica that has just failed
    losses: int = 3  # replicas lost in a row: the request may be what kills them
    forgiving_tokens: int = 16  # new ones in one attempt, after which the losses before it count no more
    suspect_losses: int = 2  # in a row, from which on requests are tried one at a time
    suspect_seconds: float = 5.0  # of an attempt, after which the next one is tried beside it
    poll_seconds: float = 0.2
    load_seconds: float = 0.2  # between two exchanges of counters and load with a replica
    exchanges_per_second: float = 250.0  # with all of them together; each costs both sides a millisecond
    exchange_bytes: int = 64 * 1024 * 1024  # one answer to them
    retire_seconds: float = 600.0  # without a replica and without a change, before a column is folded
    stop_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line and the environment of one gateway process."""

    fleet: Path
    host: str = "127.0.0.1"
    port: int = 8080
    log_format: LogFormat = "console"
    exit_with_parent: bool = False
    serving_token: str = ""

    def check(self) -> Settings:
        """The same settings, or ConfigError naming the flag, its value and what would do."""
        if not self.fleet.is_dir():
            raise ConfigError(f"--fleet {str(self.fleet)!r} is not a folder; give the one the operator writes to")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} must be in 0..65535 (0 takes a free one)")
        if not self.serving_token.isascii() or any(c.isspace() for c in self.serving_token):
            raise ConfigError(f"{SERVING_TOKEN} must be ASCII without spaces: it travels in a header")
        return self


def serving_token(environment: Mapping[str, str]) -> str:
    """The gateway's token for the replicas' serving port; empty when the replicas are open."""
    return environment.get(SERVING_TOKEN, "")
