"""The first call that a newcomer can paste: which tenant, which model, which key. Pure.

A key is shown only when the user's own YAML holds it as plain text (`stringData`); any other stays `$KEY`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafleet_operator.core.objects import Desired, SecretKeyRef, Tenant
from lorafleet_operator.local.progress import Item


@dataclass(frozen=True, slots=True)
class Access:
    """How one tenant calls the fleet: `key` is None when it must not be shown; then `secret` says where it is."""

    tenant: str
    models: tuple[str, ...]  # served names that answer now: its adapters, then its base models
    key: str | None
    secret: SecretKeyRef


def accesses(desired: Desired, documents: Iterable[Any], items: Iterable[Item]) -> list[Access]:
    """Every tenant that has a key, by name."""
    ready: dict[tuple[str, str], str] = {(i.kind, i.name): i.served_name for i in items if i.stage == "ready"}
    plain = _plain_keys(documents)
    return [
        Access(name, _models(tenant, desired, ready), plain.get(tenant.api_keys[0]), tenant.api_keys[0])
        for name, tenant in sorted(desired.tenants.items())
        if tenant.api_keys
    ]


def curl(access: Access, url: str, prompt: str = "Who are you?") -> str:
    """The command line that asks the first of the tenant's models a question."""
    body = {"model": access.models[0], "messages": [{"role": "user", "content": prompt}], "max_tokens": 48}
    key = "$KEY" if access.key is None else access.key
    bearer = f"Authorization: Bearer {key}"
    header = f'"{bearer}"' if access.key is None else shlex.quote(bearer)
    content = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {url}/v1/chat/completions -H {header} -H 'Content-Type: application/json' -d {content}"


def _models(tenant: Tenant, desired: Desired, ready: Mapping[tuple[str, str], str]) -> tuple[str, ...]:
    adapters = [
        ready.get(("LoRAAdapter", str(ref))) for ref in sorted(desired.adapters) if ref.namespace in tenant.namespaces
    ]
    bases = [ready.get(("BaseModel", str(ref))) for ref in tenant.models]
    return tuple(name for name in [*adapters, *bases] if name is not None)


def _plain_keys(documents: Iterable[Any]) -> dict[SecretKeyRef, str]:
    found: dict[SecretKeyRef, str] = {}
    for document in documents:
        if isinstance(document, Mapping) and document.get("kind") == "Secret":
            metadata, values = document.get("metadata"), document.get("stringData")
            if isinstance(metadata, Mapping) and isinstance(values, Mapping):
                namespace, name = str(metadata.get("namespace") or "default"), str(metadata.get("name"))
                for key, value in values.items():
                    found[SecretKeyRef(namespace, name, str(key))] = str(value).strip()
    return found
