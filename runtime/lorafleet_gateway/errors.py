"""The gateway's expected failures, one tree. Who raises what, and who catches it:

    GatewayError
    ├── ConfigError            config, cli            → the command line: message and exit code 2
    ├── DocumentError          core.fleet_model       → fleet: the last good document stays, one log line
    ├── CountersError          core.fairness_messages → exchange: nothing of that answer counts, one log line
    ├── ApiError               everything per request → app: one JSON body; relay: a stream's last event
    └── AttemptFailed          upstream               → placing: another replica, or the same one later
        ├── NotHere            the replica lives but cannot take this request now
        ├── Moved              the replica gave a running request back, to go on elsewhere
        └── Lost               the replica is unreachable, died or broke the protocol

Knows no framework.
"""

from __future__ import annotations

import msgspec

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class GatewayError(Exception):
    """Something that can be expected to go wrong; its text is for the person who can mend it."""


class ConfigError(GatewayError):
    """A flag, a folder or a port is wrong; the message names it."""


class DocumentError(GatewayError):
    """A fleet or tenants document that cannot be used; the message says where and why."""


class CountersError(GatewayError):
    """A replica's counters that cannot be believed; `kind` is one of few, the message says where and why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ApiError(GatewayError):
    """An answer other than 2xx: `{"error": {"message", "type", "param", "code"}}` with `status`."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        *,
        retry_after: int | None = None,
        never_again: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.never_again = never_again

    @property
    def kind(self) -> str:
        """OpenAI's `type`, which follows from the status."""
        return _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def renamed(self, wire_name: str, served_name: str) -> ApiError:
        """The same error in the client's words: a replica knows an adapter by another name."""
        message = self.message.replace(wire_name, served_name)
        return ApiError(
            self.status, message, self.code, self.param, retry_after=self.retry_after, never_again=self.never_again
        )

    def body(self) -> bytes:
        """The JSON body, the same in an answer and in a stream's last event."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> dict[str, str]:
        """The headers that go with the status."""
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.never_again:
            headers["x-should-retry"] = "false"  # OpenAI's clients ask again after any 502, unless told
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


class AttemptFailed(GatewayError):
    """One attempt at one replica did not end the request."""


class NotHere(AttemptFailed):
    """The replica answered that it cannot take the request: not ready, draining, or without the adapter."""

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Moved(AttemptFailed):
    """The replica ended a running stream on purpose; `to` names the replica that it prepared, or is empty."""

    def __init__(self, message: str, to: str = "") -> None:
        super().__init__(message)
        self.to = to


class Lost(AttemptFailed):
    """The replica could not be reached (`accepted` false), or failed with the request in its hands (true)."""

    def __init__(self, message: str, *, accepted: bool) -> None:
        super().__init__(message)
        self.accepted = accepted


class Unreachable(Lost):
    """Nobody listens there: the replica restarts, or is gone."""

    def __init__(self, message: str) -> None:
        super().__init__(message, accepted=False)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that can never work as it is: 400 naming the parameter."""
    return ApiError(400, message, code, param)


def model_not_found(model: str) -> ApiError:
    """404 for a name this tenant does not have, whether or not another tenant has it."""
    return ApiError(404, f"The model `{model}` does not exist.", "model_not_found", "model")


def model_not_ready(model: str, why: str, retry_after: int) -> ApiError:
    """503 for a model that exists while no replica can serve it."""
    message = f"The model `{model}` is not ready: {why}. Try again in {retry_after} s."
    return ApiError(503, message, "model_not_ready", "model", retry_after=retry_after)


def replica_failed(model: str, why: str) -> ApiError:
    """502 for a request that replicas took and lost, and that no other could take."""
    return ApiError(502, f"No replica of `{model}` could finish the request: {why}", "replica_failed")


def replica_killer(model: str, deaths: int, why: str) -> ApiError:
    """502 for a request over which one replica after the other was lost, and which may be the cause."""
    message = f"{deaths} replicas of `{model}` in a row were lost with this request, so it is not tried again: {why}"
    return ApiError(502, message, "replica_failed", never_again=True)


def invalid_api_key() -> ApiError:
    """401 that tells a missing key from a wrong one to nobody."""
    message = "The API key is missing or unknown; send `Authorization: Bearer KEY` with a key of your tenant."
    return ApiError(401, message, "invalid_api_key")
