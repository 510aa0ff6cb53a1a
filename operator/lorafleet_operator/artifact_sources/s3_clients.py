"""S3 clients by what a Secret holds. Without one, requests are not signed: the operator's own identity opens nothing.

That is on purpose: whoever may create an adapter would otherwise read every bucket that the operator's node may read.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from lorafleet_operator.artifact_sources.source import secret_text
from lorafleet_operator.core.objects import Secret
from lorafleet_operator.errors import SourceError

if TYPE_CHECKING:
    from botocore.client import BaseClient

MOST_CLIENTS = 64
DEFAULT_REGION = "us-east-1"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class S3Clients:
    """Thread safe. A client is made once per content of a Secret; the least recently used ones are forgotten."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, BaseClient] = OrderedDict()
        self._session: Any = None
        self._lock = threading.Lock()

    def of(self, secret: Secret | None) -> BaseClient:
        """The client that acts with these keys. Raises SourceError when the Secret lacks one."""
        options = {
            name: secret_text(secret, *keys)
            for name, keys in (
                ("aws_access_key_id", KEYS[:1]), ("aws_secret_access_key", KEYS[1:]),
                ("aws_session_token", ("AWS_SESSION_TOKEN",)),
                ("endpoint_url", ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")),
                ("region_name", ("AWS_REGION", "AWS_DEFAULT_REGION")),
            )
        }  # fmt: skip
        if secret is not None:
            missing = [key for key in KEYS if not secret_text(secret, key)]
            if missing:
                raise SourceError("SecretIncomplete", f"Secret {secret.ref} lacks {' and '.join(missing)}")
        name = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()
        with self._lock:
            client = self._clients.get(name)
            if client is None:
                client = self._make({key: value or None for key, value in options.items()})
                self._clients[name] = client
            self._clients.move_to_end(name)
            while len(self._clients) > MOST_CLIENTS:
                self._clients.popitem(last=False)
            return client

    def _make(self, options: dict[str, str | None]) -> BaseClient:
        # Imported late: it takes 20 MB of memory and a second, and most fleets have no bucket.
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        if self._session is None:
            self._session = botocore.session.Session()
        signed = options["aws_access_key_id"] is not None
        endpoint = options["endpoint_url"] or self._session.get_config_variable("endpoint_url")
        options["region_name"] = options["region_name"] or self._session.get_config_variable("region") or DEFAULT_REGION
        config = Config(
            signature_version="s3v4" if signed else UNSIGNED,
            connect_timeout=10, read_timeout=30, retries={"mode": "standard", "max_attempts": 2},
            # Buckets as host names need a wildcard record, which servers other than Amazon's seldom have.
            s3={"addressing_style": "path" if endpoint else "auto"},
        )  # fmt: skip
        try:
            client: BaseClient = self._session.create_client(
                "s3", config=config, verify=os.environ.get("SSL_CERT_FILE"), **options
            )
        except ValueError as error:  # an endpoint that is no URL
            raise SourceError("SecretInvalid", f"AWS_ENDPOINT_URL: {error}") from None
        return client
