"""An adapter's files on this machine, verified: local ones in place, remote ones in a cache named by content.

Knows neither engine nor epochs.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import (
    NO_SPACE,
    ArtifactFile,
    check_names,
    download,
    local_path,
    new_session,
    revision_of,
    verify,
)

REQUIRED_NAMES = ("adapter_config.json", "adapter_model.safetensors")
_PARTIAL = "partial-"
_ABANDONED_SECONDS = 3600.0
"""Nothing is silent for so long while it is being fetched: its process was killed."""


def check_files(revision: str, files: list[ArtifactFile]) -> None:
    """Refuse, before anything is read, what can never be loaded. Raises ArtifactError."""
    names = [file.name for file in files]
    check_names(names)
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
        self._coming: dict[str, int] = {}  # bytes that are still to be written, by revision

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
            return await self._fill(revision, folder, files)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise self._disk_full(files) from None
            raise ArtifactError("fetch_failed", f"writing {folder}: {error.strerror or error}") from None

    async def _fill(self, revision: str, folder: Path, files: list[ArtifactFile]) -> Path:
        self._cache.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(_drop_abandoned, self._cache)
        # What others are still to write is theirs: one that is too large must not fill the disk for all.
        total, promised = sum(file.size for file in files), sum(self._coming.values())
        if total + promised > shutil.disk_usage(self._cache).free:
            raise self._disk_full(files, promised)
        self._coming[revision] = total
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._cache))
        try:
            async with new_session() as session:
                for file in files:
                    before = self._coming[revision]

                    def written(size: int, before: int = before) -> None:
                        self._coming[revision] = before - size

                    await download(session, file, partial / file.name, written)
                    written(file.size)
            partial.chmod(0o755)
            try:
                partial.rename(folder)  # whole or not at all
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                await _verify_all(folder, files)  # another replica on this machine was faster
        finally:
            del self._coming[revision]
            await asyncio.to_thread(shutil.rmtree, partial, True)
        return folder

    def _disk_full(self, files: list[ArtifactFile], promised: int = 0) -> ArtifactError:
        free = shutil.disk_usage(self._cache).free
        others = f", {promised} of them for artifacts that are on their way" if promised else ""
        message = f"{self._cache}: {sum(file.size for file in files)} bytes are needed and {free} are free{others}"
        return ArtifactError("disk_full", f"{message}: free space there, or give it more (a pod: ephemeral storage)")


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


def _common_folder(files: list[ArtifactFile]) -> Path | None:
    paths = [local_path(file.url) for file in files]
    in_place = [path for path, file in zip(paths, files, strict=True) if path and path.name == file.name]
    folders = {path.parent for path in in_place}
    return folders.pop() if len(in_place) == len(files) and len(folders) == 1 else None


async def _verify_all(folder: Path, files: list[ArtifactFile]) -> None:
    for file in files:
        await asyncio.to_thread(verify, folder / file.name, file)


def _drop_abandoned(cache: Path) -> None:
    """Remove what a killed process left half-written."""
    oldest = time.time() - _ABANDONED_SECONDS
    for partial in cache.glob(f"{_PARTIAL}*"):
        try:
            newest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
        except OSError:  # it has just been renamed or removed
            continue
        if newest < oldest:
            shutil.rmtree(partial, True)
