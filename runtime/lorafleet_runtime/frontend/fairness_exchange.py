"""`POST /fairness` and `GET /admin/tenants`: the board of tenants as JSON."""

from __future__ import annotations

import msgspec
import structlog

from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.tenant_board import Exchange, Nonsense, shown

log = structlog.get_logger("runtime")
_decode = msgspec.json.Decoder(Exchange).decode


def exchange(service: Service, body: bytes, now: float) -> bytes:
    """The answer to a gateway's message. Raises ApiError 400 `invalid_counters` for nonsense, which is logged."""
    board, load = service.engine.board, service.engine.state.load
    try:
        answer = board.exchange(_decode(body), now)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Nonsense) as error:
        log.error("a gateway's counters were refused", reason=str(error))
        raise ApiError(400, f"these counters cannot be: {error}", "invalid_counters") from None
    sharing = board.sharing
    return msgspec.json.encode(
        {
            "version": 1,
            "incarnation": board.incarnation,
            **answer,
            "load": {"running": load.running if load else 0, "waiting": load.waiting if load else 0},
            "fairness": {
                "policy": sharing.policy,
                "spread": sharing.spread,
                "bound": sharing.bound,
                "rate": sharing.rate,
            },
        }
    )


def tenants(service: Service) -> bytes:
    """How tenants share this replica, for the operator."""
    board = service.engine.board
    sharing = board.sharing
    return msgspec.json.encode(
        {
            "version": 1,
            "incarnation": service.incarnation,
            "policy": sharing.policy,
            "floor": sharing.floor,
            "spread": sharing.spread,
            "bound": sharing.bound,
            "jain": sharing.jain,
            "lifts": sharing.lifts,
            "refunds": sharing.refunds,
            "tenants": list(shown(board)),
        }
    )
