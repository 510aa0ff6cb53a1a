"""What tenants have received: summed over replicas, never going back, and said in whole units."""

from __future__ import annotations

from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.usage import MODELS, Given, Report, Share, Told, fleet_floor, gathered, with_ended

TINY, LARGE = Ref("models", "tiny"), Ref("models", "large")
UNIT = 1_000_000


def report(incarnation: str = "one", floor: int = 0, **shares: Share) -> Report:
    return Report(incarnation, floor, shares)


def test_replicas_add_up_and_the_counter_is_of_whoever_has_heard_the_most() -> None:
    first = report("one", 4 * UNIT, acme=Share(6 * UNIT, 100, 50, 9 * UNIT, running=1, waiting=2, rejected=5))
    second = report("two", 3 * UNIT, acme=Share(2 * UNIT, 10, 5, 8 * UNIT, running=1, waiting=1, rejected=4))
    found = gathered([Told(TINY, first), Told(TINY, second)], {})["acme"]
    (model,) = found.models

    assert (found.service, found.prompt_tokens, found.output_tokens) == (8, 110, 55)
    assert (found.running, found.waiting) == (2, 3)
    assert (model.base, model.service, model.counter, model.lag) == (TINY, 8, 9, 6)


def test_what_gateways_refused_is_told_by_every_replica_and_counts_once() -> None:
    told = [Told(base, report(acme=Share(rejected=7))) for base in (TINY, TINY, LARGE)]

    assert gathered(told, {})["acme"].rejected == 7


def test_service_is_rounded_after_it_is_summed() -> None:
    told = [Told(TINY, report(acme=Share(service=400_000))) for _ in range(3)]

    assert gathered(told, {})["acme"].service == 1


def test_a_process_that_ended_takes_nothing_back() -> None:
    past = with_ended({}, TINY, report(acme=Share(5 * UNIT, 7, 3, running=1)), ["acme"])
    found = gathered([Told(TINY, report("two", acme=Share(1 * UNIT, 1, 1)))], past)["acme"]

    assert (found.service, found.prompt_tokens, found.output_tokens, found.running) == (6, 8, 4, 0)


def test_tenants_that_are_gone_are_forgotten() -> None:
    past = {("lost", TINY): Given(1), ("acme", TINY): Given(2 * UNIT)}

    assert with_ended(past, TINY, report(lost=Share(1), acme=Share(UNIT)), ["acme"]) == {
        ("acme", TINY): Given(3 * UNIT)
    }


def test_of_a_replica_that_does_not_serve_only_totals_count() -> None:
    silent = Told(TINY, report(acme=Share(3 * UNIT, counter=9 * UNIT, running=4, waiting=4)), serves=False)
    found = gathered([silent], {})["acme"]

    assert (found.service, found.running, found.waiting) == (3, 0, 0)
    assert (found.models[0].counter, found.models[0].lag) == (None, None)


def test_the_floor_is_told_by_those_that_have_a_queue() -> None:
    assert fleet_floor([(5, True), (3, True), (1, False)]) == 3
    assert fleet_floor([(5, False), (3, False)]) == 5
    assert fleet_floor([]) == 0


def test_a_tenant_that_has_had_less_than_whoever_waits_lags_behind() -> None:
    told = Told(TINY, report(floor=5 * UNIT, acme=Share(counter=2 * UNIT), bolt=Share(counter=5 * UNIT, waiting=1)))
    found = gathered([told], {})

    assert [found[name].models[0].lag for name in ("acme", "bolt")] == [-3, 0]


def test_only_the_base_models_that_gave_most_are_listed_and_all_are_counted() -> None:
    told = [Told(Ref("models", f"m{i:02}"), report(acme=Share(i * UNIT))) for i in range(MODELS + 4)]
    found = gathered(told, {})["acme"]

    assert len(found.models) == MODELS
    assert found.models[0].base == Ref("models", "m19")
    assert found.service == sum(range(MODELS + 4))
