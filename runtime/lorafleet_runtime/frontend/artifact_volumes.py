"""What lies on the volumes that are mounted into this replica: an adapter's files, their sizes and digests.

The operator sees no volume, so it asks here. Only folders of mounted volumes are read; a link that leads out of its
volume is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from lorafleet_runtime.errors import ApiError, invalid
from lorafleet_runtime.frontend.artifact_files import PICKLE_SUFFIXES, ArtifactFile
from lorafleet_runtime.frontend.artifacts import REQUIRED_NAMES

DEFAULT_ROOT = Path("/artifacts")
WAIT_SECONDS = 2.0
MOST_DIGESTS = 8192

_Key = tuple[str, int, int, int]


class ArtifactVolumes:
    """Each folder below `root` is a volume. A file that did not change is not read again."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self._root = root
        self._digests: OrderedDict[_Key, str] = OrderedDict()
        self._running: dict[str, asyncio.Task[list[ArtifactFile]]] = {}
        # One file at a time: a volume's bandwidth belongs to the adapters that are being loaded.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="artifact-volumes")
        self.reads = 0  # files read through, not taken from memory

    async def describe(self, path: str, wait: float = WAIT_SECONDS) -> list[ArtifactFile] | None:
        """The two files of the adapter in folder `path`, VOLUME/PATH; None when reading takes more than `wait` seconds.

        Reading goes on, and a later call finds the digests in memory. Raises ApiError: 400 for a path that leaves its
        volume, 404 for what is not there, 422 for pickles.
        """
        task = self._running.get(path)
        if task is None:
            task = asyncio.create_task(self._describe(path))
            self._running[path] = task
            task.add_done_callback(lambda done: self._forget(path, done))
        done, _ = await asyncio.wait([task], timeout=wait)
        return task.result() if done else None

    def _forget(self, path: str, task: asyncio.Task[list[ArtifactFile]]) -> None:
        del self._running[path]
        if not task.cancelled():
            task.exception()  # told to whoever still waits; nobody else needs a warning in the log

    async def _describe(self, path: str) -> list[ArtifactFile]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, path)

    def _read(self, path: str) -> list[ArtifactFile]:
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise invalid(f"{path!r} is not VOLUME/PATH", "path")
        volume = self._root / parts[0]
        if not volume.is_dir():
            raise _absent(f"no volume {parts[0]!r} is mounted at {volume}")
        inside = volume.resolve()
        folder = self._root.joinpath(*parts)
        try:
            names = {entry.name for entry in _within(folder, inside).iterdir()}
            missing = [name for name in REQUIRED_NAMES if name not in names]
            if missing:
                raise _lacks(path, names, missing)
            return [self._file(folder / name, inside) for name in REQUIRED_NAMES]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _absent(f"{error.filename or folder} is not a folder of volume {parts[0]!r}") from None
        except OSError as error:
            raise ApiError(502, f"reading {error.filename or folder}: {error.strerror}", "fetch_failed") from None

    def _file(self, path: Path, inside: Path) -> ArtifactFile:
        real = _within(path, inside)
        stat = real.stat()
        key = (str(real), stat.st_ino, stat.st_mtime_ns, stat.st_size)  # before reading: a change meanwhile is seen
        digest = self._digests.pop(key, None)
        if digest is None:
            with real.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
            self.reads += 1
        self._digests[key] = digest
        while len(self._digests) > MOST_DIGESTS:
            self._digests.popitem(last=False)
        return ArtifactFile(path.name, path.absolute().as_uri(), digest, stat.st_size)


def _within(path: Path, volume: Path) -> Path:
    """Where `path` really is. Raises ApiError when that is not on the volume."""
    real = path.resolve(strict=True)
    if not real.is_relative_to(volume):
        raise invalid(f"{path} leads out of its volume", "path")
    return real


def _lacks(path: str, names: set[str], missing: list[str]) -> ApiError:
    pickles = sorted(name for name in names if name.lower().endswith(PICKLE_SUFFIXES))
    if REQUIRED_NAMES[1] in missing and pickles:
        message = f"{path} holds {pickles[0]}, a pickle, which runs code when it is read; save it as safetensors"
        return ApiError(422, message, "pickle_refused")
    return _absent(f"{path} lacks {' and '.join(missing)}: a PEFT adapter has both")


def _absent(message: str) -> ApiError:
    return ApiError(404, message, "not_found", "path")
