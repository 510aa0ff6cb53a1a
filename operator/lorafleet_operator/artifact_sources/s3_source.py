"""`s3://BUCKET/PREFIX`: a folder of a bucket, at Amazon or any server of the same protocol; links are presigned."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from lorafleet_operator.artifact_sources.content_digests import BLOCK, ContentDigests, Digest, digest_of
from lorafleet_operator.artifact_sources.s3_clients import S3Clients
from lorafleet_operator.artifact_sources.source import (
    ADAPTER_FILES,
    LINK_SECONDS,
    SERVER_SECONDS,
    Wanted,
    incomplete,
    refuse_field,
)
from lorafleet_operator.artifact_sources.web_client import failure
from lorafleet_operator.core.objects import ArtifactFile, Secret, Source
from lorafleet_operator.errors import SourceError

if TYPE_CHECKING:
    from botocore.client import BaseClient

T = TypeVar("T")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
HEX = re.compile(r"[0-9a-f]{64}")
DENIED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
THROTTLED = {"SlowDown", "Throttling", "RequestLimitExceeded"}


class S3Source:
    """An unchanged object costs one HEAD. Its digest is what the bucket says of it, or is read from it once."""

    fresh_seconds = SERVER_SECONDS

    def __init__(self, clients: S3Clients, digests: ContentDigests) -> None:
        self._clients = clients
        self._digests = digests

    def find(self, wanted: Wanted, secret: Secret | None) -> tuple[ArtifactFile, ...]:
        source = wanted.source
        if source.revision is not None:
            raise refuse_field(source, "revision", "a bucket has no revisions: leave it out, or write sha256")
        bucket, path = _parts(source.uri)
        prefix, single = wanted.split(path)
        client = self._clients.of(secret)
        names = [single] if single else list(ADAPTER_FILES)  # known by name: keys may open objects and no listing
        if wanted.kind == "base" and not single:
            names = wanted.chosen(_names(client, bucket, prefix))
        keys = {name: f"{prefix}/{name}".lstrip("/") for name in names}
        heads = {name: _head(client, bucket, key) for name, key in keys.items()}
        missing = [name for name, head in heads.items() if head is None]
        if missing and wanted.kind == "base":
            raise SourceError("NotFound", f"{source.uri}: {' and '.join(missing)} does not exist")
        if missing:
            raise incomplete(source.uri, _listed(client, bucket, prefix), missing)
        return tuple(self._file(client, bucket, keys[name], name, head or {}) for name, head in heads.items())

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        bucket, key = _parts(file.url)
        client = self._clients.of(secret)
        where = {"Bucket": bucket, "Key": key}
        url = _asked(f"s3://{bucket}/{key}", lambda: client.generate_presigned_url("get_object", where, LINK_SECONDS))
        return replace(file, url=url)

    def _file(self, client: BaseClient, bucket: str, key: str, name: str, head: dict[str, Any]) -> ArtifactFile:
        url = f"s3://{bucket}/{key}"
        size, sha256 = int(head["ContentLength"]), _declared(head)
        if sha256 is None:
            etag = str(head.get("ETag", ""))
            place, identity = f"{client.meta.endpoint_url} {url}", f"{etag} {head.get('VersionId', '')} {size}"
            known = self._digests.get(place, identity)
            if known is None:
                known = _read(client, bucket, key, etag)
                self._digests.keep(place, identity, known)
            size, sha256 = known.size, known.sha256
        return ArtifactFile(name, url, sha256, size)


def _parts(uri: str) -> tuple[str, str]:
    """Bucket and the rest, without slashes at its ends. Raises SourceError."""
    parts = urlsplit(uri)
    if not BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise SourceError("UnsupportedSource", f"{uri}: write s3://BUCKET/PATH, with a bucket's name as S3 has it")
    return parts.netloc, unquote(parts.path).strip("/")


def _head(client: Any, bucket: str, key: str) -> dict[str, Any] | None:
    """What the bucket says of an object, None when there is none."""
    try:
        return dict(
            _asked(f"s3://{bucket}/{key}", lambda: client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
        )
    except SourceError as error:
        if error.reason == "NotFound":
            return None
        raise


def _declared(head: dict[str, Any]) -> str | None:
    """The SHA-256 of the whole object as the bucket keeps it, or as the uploader wrote it into its metadata."""
    checksum = str(head.get("ChecksumSHA256") or "")
    if checksum and "-" not in checksum and head.get("ChecksumType") != "COMPOSITE":  # else of the parts' digests
        try:
            found = base64.b64decode(checksum, validate=True).hex()
        except binascii.Error:
            found = ""
        if HEX.fullmatch(found):
            return found
    written = str((head.get("Metadata") or {}).get("sha256") or "").removeprefix("sha256:").lower()
    return written if HEX.fullmatch(written) else None


def _read(client: Any, bucket: str, key: str, etag: str) -> Digest:
    where = f"s3://{bucket}/{key}"
    condition = {"IfMatch": etag} if etag else {}  # what is digested is what the head was of

    def read() -> Digest:
        body = client.get_object(Bucket=bucket, Key=key, **condition)["Body"]
        with body:
            return digest_of(body.iter_chunks(BLOCK), where)

    return _asked(where, read)


def _names(client: Any, bucket: str, prefix: str) -> list[str]:
    """What is in the folder, the first thousand names. Raises SourceError."""
    folder = f"{prefix}/".lstrip("/")
    listed = _asked(
        f"s3://{bucket}/{folder}",
        lambda: client.list_objects_v2(Bucket=bucket, Prefix=folder, Delimiter="/", MaxKeys=1000),
    )
    return [str(item["Key"]).removeprefix(folder) for item in listed.get("Contents") or ()]


def _listed(client: Any, bucket: str, prefix: str) -> list[str]:
    """As `_names`, for a message; empty when listing is not allowed."""
    try:
        return _names(client, bucket, prefix)
    except SourceError:
        return []


def _asked(where: str, call: Callable[[], T]) -> T:
    """What the call returns; botocore's errors as SourceErrors, in words that hold no key."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        if code in THROTTLED:
            status = 429
        elif code in DENIED:
            status = 403
        elif code in ("NoSuchBucket", "NoSuchKey"):
            status = 404
        named = where if code.isdigit() or not code else f"{where} ({code})"
        raise failure(status, named) from None
    except BotoCoreError as error:
        text = str(error).partition("?")[0]  # an endpoint's URL may follow, with a signature
        raise SourceError("Unreachable", f"{where}: {text}") from None
