"""The command line's pure parts: kinds and selections, the first call to paste, the demo's questions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lorafleet_operator.cli.demo import PROMPTS, prompts_of
from lorafleet_operator.cli.example import Access, accesses, curl
from lorafleet_operator.cli.get import kinds_of, select
from lorafleet_operator.cli.terminal import age, plain_table
from lorafleet_operator.core.objects import Adapter, Desired, Ref, SecretKeyRef, Source, Tenant
from lorafleet_operator.errors import UsageError
from lorafleet_operator.local.progress import Item

KEY = SecretKeyRef("acme", "acme-key", "key")


@pytest.mark.parametrize(("word", "kinds"), [
    ("bm", ("BaseModel",)), ("LoRAAdapters", ("LoRAAdapter",)), ("ten", ("Tenant",)),
    ("lorafleet", ("BaseModel", "LoRAAdapter", "Tenant")),
])  # fmt: skip
def test_kinds_have_the_crds_names(word: str, kinds: tuple[str, ...]) -> None:
    assert kinds_of(word) == kinds


def test_the_short_name_lora_belongs_to_another_project() -> None:
    with pytest.raises(UsageError):
        kinds_of("lora")


def test_tenants_belong_to_every_namespace() -> None:
    tenant = {"kind": "Tenant", "metadata": {"name": "acme"}}
    adapter = {"kind": "LoRAAdapter", "metadata": {"name": "a", "namespace": "other"}}

    assert select([tenant, adapter], ("LoRAAdapter", "Tenant"), "acme", None) == [tenant]


def desired() -> Desired:
    tenant = Tenant("acme", ("acme",), (KEY,))
    adapter = Adapter(Ref("acme", "pirate"), Ref("models", "tiny"), "pirate", Source("file:x"))
    return Desired(tenants={"acme": tenant}, adapters={adapter.ref: adapter})


READY = [Item("LoRAAdapter", "acme/pirate", "pirate", "ready")]


def test_a_key_is_shown_when_the_yaml_holds_it_as_plain_text() -> None:
    secret = {"kind": "Secret", "metadata": {"namespace": "acme", "name": "acme-key"}, "stringData": {"key": "sk-1"}}
    (access,) = accesses(desired(), [secret], READY)

    assert access == Access("acme", ("pirate",), "sk-1", KEY)
    assert "'Authorization: Bearer sk-1'" in curl(access, "http://h:1")


def test_an_encoded_key_is_not_shown() -> None:
    secret = {"kind": "Secret", "metadata": {"namespace": "acme", "name": "acme-key"}, "data": {"key": "c2stMQ=="}}
    (access,) = accesses(desired(), [secret], READY)

    assert access.key is None
    assert '"Authorization: Bearer $KEY"' in curl(access, "http://h:1")


def test_demo_prompts_come_from_the_annotation() -> None:
    base = {"kind": "BaseModel", "metadata": {"annotations": {"lorafleet.dev/demo-prompts": "one\n\n two \n"}}}

    assert prompts_of([{"kind": "Secret"}, base]) == ("one", "two")
    assert prompts_of([]) == PROMPTS


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (119, "119s"), (600, "10m"), (7300, "2h"), (200000, "2d")])
def test_ages_read_as_kubectls(seconds: int, text: str) -> None:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    now = datetime.fromtimestamp(then.timestamp() + seconds, UTC)

    assert age("2026-01-01T00:00:00Z", now) == text


def test_a_table_has_upper_case_headers_and_aligned_columns() -> None:
    assert plain_table(["Name", "Ready"], [["a-long-name", "1/1"], ["b", ""]]) == [
        "NAME          READY",
        "a-long-name   1/1",
        "b",
    ]
