"""Every error the operator raises, drawn once.

LorafleetError                 the command line prints it as one sentence and ends with `exit_code`
├── UsageError                 options that cannot be followed
├── InputError                 nothing usable in the YAML
├── StateFolderBusy            another `lorafleet up` holds this state folder
├── PortTaken                  the gateway's port belongs to someone else
├── FleetNotRunning            `get` without a fleet to ask
├── FleetFailed                the fleet did not become ready (demo)
├── SourceError                a source has no artifact, or gives no link to it
├── KubeError                  one call of the Kubernetes API; the world catches it
│   ├── KubeUnreachable        no connection, or no answer in time
│   └── KubeRefused            an error answer, with its HTTP status and the API's message
│       ├── KubeGone           404: the object is not there any more
│       └── KubeConflict       409: someone else wrote first
└── RuntimeCallError           one call to one runtime's admin port; the world catches it
    ├── RuntimeUnreachable     no connection, or no answer in time: starting, hung or dead
    ├── RuntimeProtocolError   an answer that the contract does not know
    └── RuntimeRefused         an error answer, with its HTTP status and code
        ├── Unauthorized       wrong token: this runtime belongs to another fleet
        ├── StaleEpoch         a newer operator has acted: this one must stop acting
        ├── NoRoom             no pages for this adapter now; later there may be
        ├── DiskFull           no space for this artifact on the runtime's disk; later there may be
        ├── FetchFailed        the runtime could not read the artifact; it may be able to later
        └── AdapterRefused     this revision will never load here: digest, rank or content
"""

from __future__ import annotations


class LorafleetError(Exception):
    """An expected failure; its text is a sentence for the person at the terminal."""

    exit_code = 1


class UsageError(LorafleetError):
    exit_code = 2


class InputError(LorafleetError):
    pass


class StateFolderBusy(LorafleetError):
    pass


class PortTaken(LorafleetError):
    pass


class FleetNotRunning(LorafleetError):
    pass


class FleetFailed(LorafleetError):
    pass


class SourceError(LorafleetError):
    """Why a source has no artifact; `reason` is CamelCase for conditions. Its text holds no credential."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class KubeError(LorafleetError):
    pass


class KubeUnreachable(KubeError):
    pass


class KubeRefused(KubeError):
    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class KubeGone(KubeRefused):
    pass


class KubeConflict(KubeRefused):
    pass


class RuntimeCallError(LorafleetError):
    """A call to a runtime's admin port failed; `reason` is CamelCase for conditions."""

    reason = "RuntimeCallFailed"


class RuntimeUnreachable(RuntimeCallError):
    reason = "RuntimeUnreachable"


class RuntimeProtocolError(RuntimeCallError):
    reason = "RuntimeProtocolError"


class RuntimeRefused(RuntimeCallError):
    """The runtime answered with an error; `status` and `code` are the answer's."""

    reason = "RuntimeRefused"

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unauthorized(RuntimeRefused):
    reason = "Unauthorized"


class StaleEpoch(RuntimeRefused):
    reason = "StaleEpoch"


class NoRoom(RuntimeRefused):
    reason = "NoRoom"


class DiskFull(RuntimeRefused):
    reason = "DiskFull"


class FetchFailed(RuntimeRefused):
    reason = "FetchFailed"


class AdapterRefused(RuntimeRefused):
    """The code in CamelCase is the reason: `rank_too_high` is RankTooHigh."""

    @property
    def reason(self) -> str:  # type: ignore[override]  # the code decides, the class does not
        return "".join(part.capitalize() for part in self.code.split("_"))
