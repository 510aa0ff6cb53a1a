"""The runtime's expected failures, one tree. Who raises what, and who catches it:

    LorafleetError
    ├── ConfigError            config, cli            → the command line: message and exit code 2
    ├── ApiError               schemas, server, admin → one JSON body on every port
    ├── EngineDead             engine_client          → server: 503 or a last SSE event; cli: exit code 1
    ├── RankDied               engine.ranks           → engine process: state Failed with the reason; it ends
    ├── StepFailed             engine.step_error      → engine process: state Failed with the reason; it ends
    ├── ClientGone             disconnects            → server: the generation is aborted, nothing is answered
    └── ArtifactError          artifacts              → admin: 409, 422, 502 or 507

Knows no framework.
"""

from __future__ import annotations

from typing import Any


class LorafleetError(Exception):
    """Something that can be expected to go wrong; its text is for the person who can mend it."""


class ConfigError(LorafleetError):
    """A flag or a file of settings is wrong; the message names it."""


class ApiError(LorafleetError):
    """An answer other than 2xx: `{"error": {"message", "type", "param", "code"}}` with `status`."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """OpenAI's `type`, which follows from the status."""
        return {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def body(self) -> dict[str, Any]:
        """The JSON body, the same on every port and in a stream's last event."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that can never work as it is: 400 naming the parameter."""
    return ApiError(400, message, code, param)


class EngineDead(LorafleetError):
    """The engine process has ended; nothing that was running there will finish."""


class RankDied(LorafleetError):
    """A rank of this replica has ended unasked; no step can be finished without its part."""


class StepFailed(LorafleetError):
    """A step raised something; the message says what, and what the step was made of. Its device may answer no more."""


class ClientGone(LorafleetError):
    """The client has closed its connection; nobody reads what would come."""


class ArtifactError(LorafleetError):
    """Files could not be had: `code` is digest_mismatch, disk_full, fetch_failed, invalid_adapter or invalid_model."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
