"""Whom adapter calls go to: a runtime, be it a process or a pod."""

from __future__ import annotations

from typing import Protocol

from lorafleet_operator.runtime_client import RuntimeClient, RuntimeState


class Callee(Protocol):
    """What a call needs of a replica, be it a process or a pod."""

    @property
    def name(self) -> str: ...

    @property
    def client(self) -> RuntimeClient | None:
        """None while there is nobody to call. Another client is another process."""
        ...

    @property
    def report(self) -> RuntimeState | None: ...

    async def refresh(self) -> None:
        """Poll once, now. Raises RuntimeCallError."""
        ...
