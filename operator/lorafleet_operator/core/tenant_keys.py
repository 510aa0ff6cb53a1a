"""The keys by which tenants are recognised, and the rules about them. Pure.

A key that several tenants name recognises nobody. Elsewhere the oldest object wins; but how old a Tenant is does not
prove whose key it is, for what its Secret holds may be new, and a wrong guess serves one tenant's clients as another's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from lorafleet_operator.core.findings import Finding
from lorafleet_operator.core.objects import Desired, ObjectKey, Ref, SecretKeyRef, Tenant

Claims = Mapping[bytes, Mapping[str, str]]
"""By key: the tenants that name it, each with the path of the field that does."""


def key_material(desired: Desired, ref: SecretKeyRef) -> bytes | None:
    """The key's bytes without the line end that files bring along; None when there are none that count."""
    return None if ref in desired.shared_keys else _held(desired, ref)


def claims(desired: Desired) -> Claims:
    """Who names which key, also those tenants that other rules refuse."""
    found: dict[bytes, dict[str, str]] = defaultdict(dict)
    for name in sorted(desired.tenants):
        for index, ref in enumerate(desired.tenants[name].api_keys):
            if material := _held(desired, ref):
                found[material].setdefault(name, f".spec.apiKeys[{index}]")
    return found


def shared_keys(desired: Desired) -> frozenset[SecretKeyRef]:
    """Where keys lie that several tenants name."""
    claimed = claims(desired)
    refs = {ref for tenant in desired.tenants.values() for ref in tenant.api_keys}
    return frozenset(ref for ref in refs if len(claimed.get(_held(desired, ref) or b"", ())) > 1)


def key_findings(tenant: Tenant, desired: Desired, claimed: Claims) -> list[Finding]:
    """One key that does not count takes nothing from the others; a tenant with none left cannot be recognised."""
    wrong = list(_wrong_keys(tenant, desired, claimed))
    refuses = len(wrong) == len(tenant.api_keys)
    key = ObjectKey("Tenant", "", tenant.name)
    return [Finding(key, field, reason, message, refuses) for field, reason, message in wrong]


def _wrong_keys(tenant: Tenant, desired: Desired, claimed: Claims) -> Iterator[tuple[str, str, str]]:
    for index, ref in enumerate(tenant.api_keys):
        material, path = _held(desired, ref), f".spec.apiKeys[{index}]"
        if material is None:
            yield f"{path}.secretRef", "KeyMissing", _why_missing(desired, ref)
            continue
        other = next((name for name in claimed[material] if name != tenant.name), None)
        if other is not None:
            yield (
                path, "KeyConflict",
                f"the key in Secret {ref.namespace}/{ref.name} is also Tenant {other}'s ({claimed[material][other]}): "
                "a key names one tenant, so it recognises neither until one of them has a new one",
            )  # fmt: skip


def _held(desired: Desired, ref: SecretKeyRef) -> bytes | None:
    secret = desired.secrets.get(Ref(ref.namespace, ref.name))
    return (secret.data.get(ref.key, b"").strip() or None) if secret else None


def _why_missing(desired: Desired, ref: SecretKeyRef) -> str:
    secret = desired.secrets.get(Ref(ref.namespace, ref.name))
    if secret is None:
        return f"there is no Secret {ref.namespace}/{ref.name}: create it with the key {ref.key!r}"
    if ref.key not in secret.data:
        has = ", ".join(sorted(secret.data)) or "no keys"
        return f"Secret {ref.namespace}/{ref.name} has no key {ref.key!r} (it has {has})"
    return f"the key {ref.key!r} of Secret {ref.namespace}/{ref.name} is empty"
