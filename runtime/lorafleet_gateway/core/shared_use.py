"""One quota over many gateways: what others admitted, as replicas relay it.

Each gateway tells grow-only totals per tenant, under a sequence that grows with every exchange. They merge by maximum,
so that losing, repeating or reordering exchanges does no harm once the last one arrives.

The error. With G gateways, a limit of r per second and d seconds until an admission is known everywhere (two exchange
periods, to a replica and from it), a gateway has not yet taken from its bucket what the others admitted in the last d.
While a tenant asks for more than its quota, buckets are near empty and each of the others admits at most r d in that
time: at most (G-1) r d more than the limit is admitted at any time. Where nobody could hear of it, because the tenant
was idle or the network was cut, every gateway's bucket may be full: then up to (G-1) buckets more, once. All of it is
taken out when it is heard of, as a debt of at most one bucket. Concurrent requests: at most (G-1) times what the
others start within d. Tokens are told as they are reserved: what turns out too much is not told again when it is used,
so that others are ahead by no more than the estimates that ran together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorafleet_gateway.core.quota import Use

SILENT_SECONDS = 60.0  # a gateway that is not heard of for that long is forgotten, with what it ran
NEW_EXCHANGES = 50
"""A gateway in its first exchanges is new: all that it has admitted counts. Later ones have a history that does not:
it was filled up again long ago. Much less than the exchanges of `SILENT_SECONDS`, so that nobody is new twice."""

MOST_GATEWAYS = 1_024  # more than that are one replica's nonsense


@dataclass(slots=True)
class _Gateway:
    sequence: int = -1
    heard: float = 0.0
    whole: bool = False
    """Every tenant of it is known, so that one that is not yet known has admitted nothing before."""
    tenants: dict[str, Use] = field(default_factory=dict)


class SharedUse:
    """What the other gateways have admitted, as far as this one, `own`, has heard."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._gateways: dict[str, _Gateway] = {}

    def __len__(self) -> int:
        return len(self._gateways)

    def hear(
        self, gateway: str, sequence: int, tenants: Mapping[str, Use], now: float, *, whole: bool
    ) -> dict[str, tuple[int, int]]:
        """Merge what a replica relays; requests and tokens per tenant that are to be taken from its buckets.

        `whole` says that the replica told all it knows, and not only what changed."""
        known = self._gateways.get(gateway)
        if gateway == self._own or (known is None and len(self._gateways) >= MOST_GATEWAYS):
            return {}
        if known is None:
            known = self._gateways[gateway] = _Gateway(whole=sequence <= NEW_EXCHANGES)
            history = not known.whole
        else:
            history = False
        if sequence > known.sequence:
            known.sequence, known.heard = sequence, now
        growth = {}
        for name, told in tenants.items():
            before = known.tenants.get(name, Use())
            if name not in known.tenants and (history or not known.whole):
                before = told  # its history, which nobody has to pay for again
            after = known.tenants[name] = before.joined(told)
            if after.requests > before.requests or after.tokens > before.tokens:
                growth[name] = (after.requests - before.requests, after.tokens - before.tokens)
        known.whole = known.whole or (history and whole)
        return growth

    def running(self, tenant: str) -> int:
        """Requests of a tenant that run at other gateways."""
        return sum(known.tenants[tenant].running for known in self._gateways.values() if tenant in known.tenants)

    def forget(self, now: float) -> None:
        """Drop gateways that have been silent for `SILENT_SECONDS`."""
        silent = [name for name, known in self._gateways.items() if now - known.heard > SILENT_SECONDS]
        for name in silent:
            del self._gateways[name]


class OwnUse:
    """What this gateway tells replicas: the tenants whose use changed since each was last told."""

    def __init__(self) -> None:
        self.sequence = 0
        self._changed: dict[str, int] = {}  # tenant -> first sequence that tells of its last change, oldest first

    def touch(self, tenant: str) -> None:
        """A tenant's use has changed; the next sequence tells."""
        self._changed.pop(tenant, None)
        self._changed[tenant] = self.sequence + 1

    def since(self, sequence: int) -> list[str]:
        """The tenants that somebody who knows `sequence` must be told of."""
        found = []
        for tenant, changed in reversed(self._changed.items()):
            if changed <= sequence:
                break
            found.append(tenant)
        return found
