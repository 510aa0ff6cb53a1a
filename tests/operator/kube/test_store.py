"""The store tells changes that matter from those that do not, and keeps the last good form of what cannot be read."""

from __future__ import annotations

from typing import Any

from lorafleet_operator.core.objects import ObjectKey, Ref
from lorafleet_operator.kube.store import Store


def adapter(served: str = "one", version: str = "1", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "one", "namespace": "acme", "uid": "u", "resourceVersion": version, "generation": 1},
        "spec": {"baseModelRef": {"name": "tiny"}, "servedName": served, "source": {"uri": "https://x/one"}, **spec},
    }


def test_a_change_of_the_spec_matters_and_one_of_the_status_does_not() -> None:
    store = Store()
    assert store.put("LoRAAdapter", adapter())
    assert not store.put("LoRAAdapter", {**adapter(version="2"), "status": {"ready": "1/1"}})
    assert store.statuses()[ObjectKey("LoRAAdapter", "acme", "one")] == {"ready": "1/1"}
    assert store.put("LoRAAdapter", adapter("other", "3"))
    assert store.desired().adapters[Ref("acme", "one")].served_name == "other"


def test_what_cannot_be_read_keeps_its_last_good_form_and_says_why() -> None:
    store = Store()
    store.put("LoRAAdapter", adapter())
    store.put("LoRAAdapter", adapter(version="2", copies={"min": 0}))
    desired = store.desired()
    assert desired.adapters[Ref("acme", "one")].served_name == "one"
    assert "copies.min" in str(desired.problems[0])
    store.put("LoRAAdapter", adapter(version="3"))
    assert store.desired().problems == ()


def test_an_object_that_is_being_deleted_is_wanted_no_longer() -> None:
    store = Store()
    store.put("LoRAAdapter", adapter())
    leaving = adapter(version="2")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert store.put("LoRAAdapter", leaving)
    assert store.desired().adapters == {}


def test_a_pod_that_is_being_deleted_stays_until_it_is_gone() -> None:
    store = Store()
    pod: dict[str, Any] = {
        "metadata": {"name": "p", "namespace": "models", "uid": "u"},
        "status": {"podIP": "10.0.0.1"},
    }
    assert store.put("Pod", pod)
    assert not store.put("Pod", {**pod, "metadata": {**pod["metadata"], "resourceVersion": "2"}})
    assert store.put("Pod", {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
    assert len(store.pods()) == 1
    assert store.drop("Pod", pod)
    assert store.pods() == []


def test_nothing_missing_counts_as_removed_before_everything_was_listed() -> None:
    store = Store()
    assert not store.desired().complete
    store.complete = True
    assert store.desired().complete


def test_an_older_form_of_an_object_is_no_news() -> None:
    store = Store()
    store.put("LoRAAdapter", adapter("new", "10"))
    assert not store.put("LoRAAdapter", adapter("old", "9"))
    assert store.desired().adapters[Ref("acme", "one")].served_name == "new"


def test_the_answer_to_a_write_does_not_bring_back_what_has_gone() -> None:
    store = Store()
    store.update("LoRAAdapter", adapter())
    assert store.desired().adapters == {}
