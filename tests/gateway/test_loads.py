from __future__ import annotations

from dataclasses import dataclass, field

from lorafleet_gateway.core.fleet_model import BaseModel, FleetDocument, Replica, fleet_of, index
from lorafleet_gateway.core.routing import Load
from lorafleet_gateway.loads import Loads

BASE = ("models", "smol")
REPLICA = Replica("r0", "http://r0", "Ready", "i1")


@dataclass(eq=False)
class Pending:
    abandoned: list[str] = field(default_factory=list)

    def abandon(self, why: str) -> None:
        self.abandoned.append(why)


def test_requests_count_while_they_are_held() -> None:
    loads = Loads(lambda: 0.0, 1.0)
    with loads.hold(BASE, REPLICA, Pending()), loads.hold(BASE, REPLICA, Pending()):
        inside = loads.of(BASE, (REPLICA,))

    assert inside == {REPLICA.key: Load(2, 0)}
    assert loads.of(BASE, (REPLICA,)) == {REPLICA.key: Load(0, 0)}


def test_a_report_counts_only_what_is_not_ours() -> None:
    loads = Loads(lambda: 0.0, 1.0)
    with loads.hold(BASE, REPLICA, Pending()):
        loads.report(BASE, REPLICA.key, 4)
        assert loads.of(BASE, (REPLICA,)) == {REPLICA.key: Load(1, 3)}
        loads.report(BASE, REPLICA.key, 0)  # older than our request

    assert loads.of(BASE, (REPLICA,)) == {REPLICA.key: Load(0, 0)}


def test_a_failed_replica_is_avoided_for_a_moment() -> None:
    times = iter((0.0, 0.0, 0.9, 1.1))
    loads = Loads(lambda: next(times), 1.0)
    loads.mark_failed(REPLICA.key)

    assert [loads.avoided() for _ in range(3)] == [{REPLICA.key}, {REPLICA.key}, set()]


def test_requests_at_a_process_that_was_given_up_are_abandoned_and_others_are_not() -> None:
    loads = Loads(lambda: 0.0, 1.0)
    hung, fine = Pending(), Pending()
    other = Replica("r1", "http://r1", "Ready", "i1")
    failed = Replica("r0", "http://r0", "Failed", "i1")
    document = FleetDocument(1, 1, BaseModel(*BASE, "smol-135m"), (failed, other))
    with loads.hold(BASE, REPLICA, hung), loads.hold(BASE, other, fine):
        loads.follow(fleet_of([index(document)]))

    assert len(hung.abandoned) == 1
    assert fine.abandoned == []
