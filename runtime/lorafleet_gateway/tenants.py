"""From an `Authorization` header to a tenant. Knows only hashes: no key is ever held longer than one
look-up."""

from __future__ import annotations

import hashlib
import hmac

from lorafleet_gateway.core.fleet_model import Tenant, TenantsDocument


class TenantTable:
    """All keys of one tenants document. Several keys of a tenant are valid at once, so a key can be rotated
    without a gap."""

    def __init__(self, document: TenantsDocument | None = None) -> None:
        """`None` is a gateway that was given no document: every key is unknown."""
        self.by_name = {tenant.name: tenant for tenant in (document.tenants if document else ())}
        self._owners: dict[str, tuple[str, Tenant]] = {}
        self.ambiguous: list[str] = []
        taken: dict[str, str] = {}
        for tenant in document.tenants if document else ():
            for key in tenant.keys:
                digest = key.sha256.lower()
                if digest in self._owners and self._owners[digest][1].name != tenant.name:
                    taken[digest] = self._owners[digest][1].name
                    self.ambiguous.append(key.id)
                self._owners[digest] = (digest, tenant)
        for digest in taken:  # a key that names two tenants identifies neither
            del self._owners[digest]

    def authenticate(self, authorization: str | None) -> Tenant | None:
        """The tenant whose key `Bearer KEY` carries, or None. `authorization` is the header as ASGI servers
        decode it."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).hexdigest()
        stored, tenant = self._owners.get(digest, ("", None))
        # The look-up already compares hashes, which a caller cannot steer; comparing again in constant time
        # costs nothing.
        return tenant if hmac.compare_digest(stored, digest) else None

    def __len__(self) -> int:
        return len(self._owners)
