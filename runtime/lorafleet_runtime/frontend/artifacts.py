"""An adapter's files on this machine, verified: local ones in place, remote ones in a cache named by content.

Knows URLs, sizes and digests; knows neither engine nor epochs, and logs no URL: it may be presigned. Small files may
come in the order itself, as `data:` URLs: a source may have no other short-lived way to them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from lorafleet_runtime.errors import ArtifactError

REQUIRED_NAMES = ("adapter_config.json", "adapter_model.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
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


def check_files(revision: str, files: list[ArtifactFile]) -> None:
    """Refuse, before anything is read, what can never be loaded. Raises ArtifactError."""
    for file in files:
        if file.name.lower().endswith(PICKLE_SUFFIXES):
            raise ArtifactError(
                "invalid_adapter",
                f"{file.name} is a pickle, which runs code when it is read; save the adapter as safetensors",
            )
        if not _NAME.fullmatch(file.name):
            raise ArtifactError("invalid_adapter", f"{file.name!r} is not a plain file name")
    names = [file.name for file in files]
    for name in REQUIRED_NAMES:
        if names.count(name) != 1:
            raise ArtifactError("invalid_adapter", f"{name} is listed {names.count(name)} times, not once")
    if revision_of(files) != revision:
        message = f"the files make {revision_of(files)}, not {revision}"
        raise ArtifactError("digest_mismatch", message)


class ArtifactStore:
    """Fetches artifacts; one fetch per revision at a time, shared by whoever asks meanwhile."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._running: dict[str, asyncio.Task[Path]] = {}

    async def fetch(self, revision: str, files: list[ArtifactFile]) -> Path:
        """The folder that holds these files, verified. Raises ArtifactError.

        A waiter that is cancelled leaves the fetch to the others.
        """
        check_files(revision, files)
        task = self._running.get(revision)
        if task is None:
            task = asyncio.create_task(self._fetch(revision, files))
            self._running[revision] = task
            task.add_done_callback(lambda _: self._running.pop(revision, None))
        return await asyncio.shield(task)

    async def _fetch(self, revision: str, files: list[ArtifactFile]) -> Path:
        in_place = _common_folder(files)
        if in_place is not None:
            await _verify_all(in_place, files)
            return in_place
        folder = self._cache / revision.removeprefix("sha256:")
        if folder.exists():
            try:
                await _verify_all(folder, files)
                return folder
            except ArtifactError:  # a damaged cache entry is fetched again
                await asyncio.to_thread(shutil.rmtree, folder, True)
        try:
            return await self._fill(folder, files)
        except OSError as error:
            raise ArtifactError("fetch_failed", f"writing {folder}: {error.strerror or error}") from None

    async def _fill(self, folder: Path, files: list[ArtifactFile]) -> Path:
        self._cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=self._cache))
        try:
            async with aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session:
                for file in files:
                    await _download(session, file, partial / file.name)
            partial.chmod(0o755)
            try:
                partial.rename(folder)  # whole or not at all
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                await _verify_all(folder, files)  # another replica on this machine was faster
        finally:
            await asyncio.to_thread(shutil.rmtree, partial, True)
        return folder


def read_folder(folder: Path) -> list[ArtifactFile]:
    """The adapter files of a local folder, with their sizes and digests. Raises ArtifactError."""
    files = []
    for name in REQUIRED_NAMES:
        path = folder / name
        try:
            with path.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
            files.append(ArtifactFile(name, path.absolute().as_uri(), digest, path.stat().st_size))
        except OSError as error:
            raise ArtifactError("fetch_failed", f"reading {path}: {error.strerror or error}") from None
    return files


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/lorafleet/adapters`, in the home directory where that is not set."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lorafleet" / "adapters"


def local_path(url: str) -> Path | None:
    """The path of a `file:` URL, None for http(s) and data. Raises ArtifactError for any other scheme."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "data"):
        return None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        message = f"cannot fetch {_shown(url)}: give file:///ABSOLUTE/PATH, http, https or data"
        raise ArtifactError("fetch_failed", message)
    return Path(unquote(parts.path))


def _common_folder(files: list[ArtifactFile]) -> Path | None:
    paths = [local_path(file.url) for file in files]
    in_place = [path for path, file in zip(paths, files, strict=True) if path and path.name == file.name]
    folders = {path.parent for path in in_place}
    return folders.pop() if len(in_place) == len(files) and len(folders) == 1 else None


async def _verify_all(folder: Path, files: list[ArtifactFile]) -> None:
    for file in files:
        await asyncio.to_thread(_verify, folder / file.name, file)


def _verify(path: Path, file: ArtifactFile) -> None:
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


async def _download(session: aiohttp.ClientSession, file: ArtifactFile, target: Path) -> None:
    source = local_path(file.url)
    if source is not None:
        try:
            await asyncio.to_thread(shutil.copyfile, source, target)
        except OSError as error:
            raise ArtifactError("fetch_failed", f"reading {source}: {error.strerror or error}") from None
        await asyncio.to_thread(_verify, target, file)
        return
    if file.url.startswith("data:"):
        target.write_bytes(_inline(file))
        _verify(target, file)
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
