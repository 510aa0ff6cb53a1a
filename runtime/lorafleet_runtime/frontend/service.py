"""What both ports stand on: engine, tokenizer, adapters, and whether this replica takes requests."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.adapters import Adapters
from lorafleet_runtime.frontend.artifact_volumes import ArtifactVolumes
from lorafleet_runtime.frontend.engine_api import Engine
from lorafleet_runtime.frontend.metrics import Metrics
from lorafleet_runtime.frontend.tokenizer import ModelTokenizer
from lorafleet_runtime.protocol import ModelInfo


@dataclass(frozen=True, slots=True)
class Settings:
    """`serving_token` empty: standalone, open, and the gateway's headers count for nothing."""

    served_name: str
    serving_token: str = ""
    admin_token: str = ""


@dataclass(slots=True)
class Service:
    """One replica's front end, shared by the serving and the admin app. All of it lives on one event loop."""

    engine: Engine
    tokenizer: ModelTokenizer
    adapters: Adapters
    settings: Settings
    metrics: Metrics
    volumes: ArtifactVolumes = field(default_factory=ArtifactVolumes)
    started: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    open_requests: int = 0

    @property
    def incarnation(self) -> str:
        """Names the engine that serves now: another one knows nothing of what this one was asked or had loaded."""
        return self.engine.board.incarnation

    @property
    def phase(self) -> str:
        """Loading, Ready, Draining or Failed."""
        phase = self.engine.state.phase
        return "Draining" if self.draining and phase == "Ready" else phase

    def require_ready(self) -> ModelInfo:
        """The model's facts. Raises ApiError 503 `not_ready` or `draining`."""
        state = self.engine.state
        if state.phase != "Ready" or state.model is None:
            reason = state.message or f"{state.progress:.0%} loaded"
            raise ApiError(503, f"the model is not ready: {reason}", "not_ready", retry_after=1)
        if self.draining:
            raise ApiError(503, "this replica drains; send it elsewhere", "draining", retry_after=1)
        return state.model

    def resolve(self, model: str) -> str | None:
        """The adapter id behind a `model`, None for the base model. Raises ApiError 404 or 503."""
        if model == self.settings.served_name:
            return None
        states = {state.state: state for state in self.adapters.of(model)}
        if "Ready" in states:
            return model
        if "Loading" in states:
            raise ApiError(503, f"adapter {model} is being loaded", "adapter_loading", "model", retry_after=1)
        why = f": it failed to load: {states['Failed'].message}" if "Failed" in states else ""
        raise ApiError(404, f"the model {model!r} does not exist{why}", "model_not_found", "model")
