"""What `lorafleet-runtime serve` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorafleet_runtime.config import EngineConfig


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Tokens come from the environment, never from argv. Each folder of `artifacts` is a mounted volume.

    With `model_from_operator`, the engine's model is not known yet: the admin port is told.
    """

    engine: EngineConfig
    host: str
    port: int
    admin_port: int
    log_format: str
    exit_with_parent: bool
    drain_seconds: float
    adapters: tuple[tuple[str, Path], ...]
    serving_token: str
    admin_token: str
    artifacts: Path
    model_from_operator: bool = False
