"""One file of an artifact: where it is, what it must be, and how it comes here.

Knows URLs, sizes and digests, and logs no URL: it may be presigned. Small files may come in the order itself, as
`data:` URLs: a source may have no other short-lived way to them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from lorafleet_runtime.errors import ArtifactError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BLOCK = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """`authorization` is the header of that name for `url`, "" for none. Both may be credentials: repr hides them."""

    name: str
    url: str = field(repr=False)
    sha256: str
    size: int
    authorization: str = field(default="", repr=False)


def revision_of(files: Iterable[ArtifactFile]) -> str:
    """The content digest that names an artifact: over its files' names and digests, sorted by name."""
    lines = "".join(f"{file.name} {file.sha256}\n" for file in sorted(files, key=lambda file: file.name))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def check_names(names: Iterable[str]) -> None:
    """Refuse names that are no plain file names, and pickles. Raises ArtifactError."""
    for name in names:
        if name.lower().endswith(PICKLE_SUFFIXES):
            raise ArtifactError(
                "invalid_adapter", f"{name} is a pickle, which runs code when it is read; save it as safetensors"
            )
        if not _NAME.fullmatch(name):
            raise ArtifactError("invalid_adapter", f"{name!r} is not a plain file name")


def new_session() -> aiohttp.ClientSession:
    """For `download`: bounded in silence, not in time."""
    return aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False)


def local_path(url: str) -> Path | None:
    """The path of a `file:` URL, None for http(s) and data. Raises ArtifactError for any other scheme."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "data"):
        return None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        message = f"cannot fetch {_shown(url)}: give file:///ABSOLUTE/PATH, http, https or data"
        raise ArtifactError("fetch_failed", message)
    return Path(unquote(parts.path))


def verify(path: Path, file: ArtifactFile) -> None:
    """Raises ArtifactError unless `path` holds just this file. Blocks."""
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as source:
            while block := source.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise ArtifactError("fetch_failed", f"reading {path}: {error.strerror or error}") from None
    _compare(file, size, digest.hexdigest())


async def download(
    session: aiohttp.ClientSession, file: ArtifactFile, target: Path, told: Callable[[int], None] = lambda size: None
) -> None:
    """Put the file at `target`, verified; `told` is called with the bytes that are there. Raises ArtifactError, and
    OSError where `target` cannot be written."""
    source = local_path(file.url)
    if source is not None:
        try:
            await asyncio.to_thread(shutil.copyfile, source, target)
        except OSError as error:
            if error.errno in NO_SPACE or error.filename == str(target):
                raise
            raise ArtifactError("fetch_failed", f"reading {source}: {error.strerror or error}") from None
        await asyncio.to_thread(verify, target, file)
        return
    if file.url.startswith("data:"):
        target.write_bytes(_inline(file))
        verify(target, file)
        return
    digest = hashlib.sha256()
    size = 0
    headers = {"Accept-Encoding": "identity"}  # digests are of files as they are stored
    if file.authorization:
        headers["Authorization"] = file.authorization
    try:
        async with session.get(file.url, headers=headers) as response:  # a redirect to another host loses the header
            if response.status != 200:
                expired = ": the link may have expired" if response.status in (401, 403) else ""
                message = f"{file.name}: {_shown(file.url)} answered {response.status}{expired}"
                raise ArtifactError("fetch_failed", message)
            with target.open("wb") as sink:
                async for block in response.content.iter_chunked(_BLOCK):
                    size += len(block)
                    if size > file.size:
                        break  # a source that never ends must not fill the disk
                    digest.update(block)
                    await asyncio.to_thread(sink.write, block)
                    told(size)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # aiohttp's own texts may repeat the whole URL
        message = f"{file.name}: fetching {_shown(file.url)}: {type(error).__name__}"
        raise ArtifactError("fetch_failed", message) from None
    _compare(file, size, digest.hexdigest())


def _inline(file: ArtifactFile) -> bytes:
    """The content of a `data:` URL in base64."""
    head, _, content = file.url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error):
        raise ArtifactError("fetch_failed", f"{file.name}: its data: URL is not base64") from None


def _compare(file: ArtifactFile, size: int, digest: str) -> None:
    if size > file.size:
        message = f"{file.name} is longer than the {file.size} bytes that were announced"
        raise ArtifactError("digest_mismatch", message)
    if size < file.size:
        message = f"{file.name} has {size} bytes; {file.size} were announced"
        raise ArtifactError("digest_mismatch", message)
    if digest != file.sha256:
        message = f"{file.name} has SHA-256 {digest}; {file.sha256} was announced"
        raise ArtifactError("digest_mismatch", message)


def _shown(url: str) -> str:
    """A URL without user, password and query: those may be credentials."""
    parts = urlsplit(url)
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    return f"{parts.scheme}://{host}{parts.path}"
