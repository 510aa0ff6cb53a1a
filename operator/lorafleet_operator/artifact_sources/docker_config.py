"""Logins of registries, from a Secret of type kubernetes.io/dockerconfigjson."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorafleet_operator.core.objects import Secret
from lorafleet_operator.errors import SourceError

KEY = ".dockerconfigjson"
DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Login:
    """A user and a password; or a refresh token, and then the password is empty."""

    user: str
    password: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The Authorization header that carries user and password."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def login(secret: Secret, host: str, repository: str) -> Login:
    """The login for `host/repository`: of the entries for that host, the one that names most of the path.

    Raises SourceError when the Secret has none, or is no such Secret.
    """
    auths = _auths(secret)
    hosts = DOCKER_HUB if host in DOCKER_HUB else (host,)
    best: tuple[int, Mapping[str, Any]] | None = None
    for key, entry in auths.items():
        name, _, path = key.removeprefix("https://").removeprefix("http://").strip("/").partition("/")
        path = "" if path in ("v1", "v2") else path
        fits = name in hosts and (not path or f"{repository}/".startswith(f"{path}/"))
        if fits and isinstance(entry, Mapping) and (best is None or len(path) > best[0]):
            best = len(path), entry
    if best is None:
        known = ", ".join(sorted(map(str, auths))) or "nothing"
        raise SourceError("SecretIncomplete", f"Secret {secret.ref} has no login for {host} (it has {known})")
    return _read(best[1], secret, host)


def _auths(secret: Secret) -> Mapping[str, Any]:
    if KEY not in secret.data:
        make = "make it with kubectl create secret docker-registry"
        raise SourceError("SecretIncomplete", f"Secret {secret.ref} lacks {KEY}: {make}")
    try:
        auths = json.loads(secret.data[KEY])["auths"]
        if isinstance(auths, dict):
            return auths
    except (ValueError, KeyError, TypeError):
        pass
    raise SourceError("SecretInvalid", f"Secret {secret.ref}: {KEY} is no Docker configuration with auths")


def _read(entry: Mapping[str, Any], secret: Secret, host: str) -> Login:
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            message = f"Secret {secret.ref}: auth of {host} is not base64 of USER:PASSWORD"
            raise SourceError("SecretInvalid", message) from None
    token = str(entry.get("identitytoken") or "")
    if not token and not (user and password):
        raise SourceError("SecretInvalid", f"Secret {secret.ref}: the login for {host} has no user or no password")
    return Login(user, password, token)
