"""A registry's HTTP API, as far as pulling needs it: manifests, blobs, and the token that opens them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

from lorafleet_operator.artifact_sources.docker_config import Login, login
from lorafleet_operator.artifact_sources.web_client import Answer, WebClient, failure
from lorafleet_operator.core.objects import Secret
from lorafleet_operator.errors import SourceError

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
)  # fmt: skip
DEFAULT_TOKEN_SECONDS = 60.0  # what the protocol says for a token that does not tell
MOST_TOKENS = 4096
PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Repository:
    """HOST[:PORT] and the path below it."""

    host: str
    path: str

    def url(self, rest: str) -> str:
        host = "registry-1.docker.io" if self.host in ("docker.io", "index.docker.io") else self.host
        return f"https://{host}/v2/{self.path}/{rest}"

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.path}"


class OciRegistry:
    """Thread safe. A token serves for half of its time, so that what is handed on works for the other half."""

    def __init__(self, web: WebClient) -> None:
        self._web = web
        self._tokens: OrderedDict[tuple[Repository, str], tuple[float, str]] = OrderedDict()
        self._lock = threading.Lock()

    def manifest(self, repository: Repository, reference: str, secret: Secret | None) -> tuple[bytes, str]:
        """The manifest under a tag or digest, and its media type. Raises SourceError."""
        where = f"{repository}{'@' if reference.startswith('sha256:') else ':'}{reference}"
        answer, _ = self._ask("GET", repository, f"manifests/{reference}", secret, accept=", ".join(MANIFESTS))
        answer.expect(where)
        if reference.startswith("sha256:") and hashlib.sha256(answer.body).hexdigest() != reference[7:]:
            raise SourceError("DigestMismatch", f"{where}: the registry sent another manifest than that of this digest")
        return answer.body, answer.headers.get("content-type", "").partition(";")[0].strip()

    def link(self, repository: Repository, digest: str, secret: Secret | None) -> tuple[str, str]:
        """A URL of a blob and the Authorization header that it needs, "" for none. Raises SourceError."""
        answer, authorization = self._ask("GET", repository, f"blobs/{digest}", secret, body=False)
        if answer.moved_to and urlsplit(answer.moved_to).netloc != urlsplit(answer.url).netloc:
            return answer.moved_to, ""  # to storage, with a signature of its own
        if not answer.moved_to:
            answer.expect(f"{repository}@{digest}")
        if authorization.startswith("Basic "):
            raise SourceError(
                "NoShortLivedLink",
                f"{repository}: the registry knows passwords only, and a password never leaves the operator: give it a "
                "token server (most registries have one), let it redirect to its storage, or allow anonymous pulls",
            )
        return answer.moved_to or answer.url, authorization

    def _ask(
        self, method: str, repository: Repository, path: str, secret: Secret | None, *, accept: str = "*/*",
        body: bool = True,
    ) -> tuple[Answer, str]:  # fmt: skip
        """The answer, and the Authorization header that it took."""
        account = login(secret, repository.host, repository.path) if secret is not None else None
        key = repository, hashlib.sha256(repr(_identity(account)).encode()).hexdigest()
        authorization = self._kept(key)
        for _ in range(2):
            headers = {"Accept": accept, **({"Authorization": authorization} if authorization else {})}
            answer = self._web.ask(method, repository.url(path), headers, body=body)
            if answer.status != 401:
                break
            authorization, seconds = self._authorize(answer, repository, account)
            self._keep(key, authorization, seconds)
        return answer, authorization

    def _kept(self, key: tuple[Repository, str]) -> str:
        with self._lock:
            until, authorization = self._tokens.get(key, (0.0, ""))
            return authorization if time.monotonic() < until else ""

    def _keep(self, key: tuple[Repository, str], authorization: str, seconds: float) -> None:
        with self._lock:
            self._tokens[key] = time.monotonic() + seconds / 2, authorization
            self._tokens.move_to_end(key)
            while len(self._tokens) > MOST_TOKENS:
                self._tokens.popitem(last=False)

    def _authorize(self, answer: Answer, repository: Repository, account: Login | None) -> tuple[str, float]:
        """The header that a 401 asks for, and for how many seconds it serves."""
        challenge = answer.headers.get("www-authenticate", "")
        scheme = challenge.partition(" ")[0].lower()
        if scheme == "basic" and account is not None and account.password:
            return account.basic, DEFAULT_TOKEN_SECONDS
        if scheme != "bearer":
            raise failure(401, f"{repository}: the registry asks for {scheme or 'nothing known'}")
        parameters = {name.lower(): value for name, value in PARAMETER.findall(challenge)}
        realm = parameters.get("realm", "")
        if urlsplit(realm).scheme != "https":
            raise SourceError("Unreachable", f"{repository}: its token server {realm!r} is not at an https URL")
        query = {"scope": parameters.get("scope") or f"repository:{repository.path}:pull"}
        if parameters.get("service"):
            query["service"] = parameters["service"]
        return self._token(realm, query, account, repository)

    def _token(
        self, realm: str, query: dict[str, str], account: Login | None, repository: Repository
    ) -> tuple[str, float]:
        if account is not None and account.refresh_token:
            form = {**query, "grant_type": "refresh_token", "refresh_token": account.refresh_token,
                    "client_id": "lorafleet"}  # fmt: skip
            answer = self._web.ask("POST", realm, form=form)
        else:
            headers = {"Authorization": account.basic} if account is not None else {}
            answer = self._web.ask("GET", realm, headers, params=query)
        answer.expect(f"{repository}: the token server {answer.shown}")
        try:
            body = json.loads(answer.body)
            token = str(body.get("token") or body["access_token"])
            return f"Bearer {token}", float(body.get("expires_in") or DEFAULT_TOKEN_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError("Unreachable", f"{repository}: {answer.shown} answers without a token") from None


def _identity(account: Login | None) -> tuple[str, str, str] | None:
    return None if account is None else (account.user, account.password, account.refresh_token)
