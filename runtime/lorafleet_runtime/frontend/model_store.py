"""The base model that was ordered, in a cache on this machine. What is whole is kept, so that a second attempt goes on.

One model per cache: the folder is the pod's own.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import (
    ArtifactFile,
    check_names,
    download,
    new_session,
    revision_of,
    verify,
)

WEIGHTS = (".safetensors", ".gguf")
LAST = "last.json"


def check_model(revision: str, files: list[ArtifactFile]) -> None:
    """Refuse, before anything is read, what can never be a base model. Raises ArtifactError."""
    names = [file.name for file in files]
    check_names(names)
    if len(set(names)) < len(names):
        raise ArtifactError("invalid_model", "a file is listed twice")
    if not any(name.endswith(WEIGHTS) for name in names):
        raise ArtifactError("invalid_model", "no file is *.safetensors or *.gguf")
    if revision_of(files) != revision:
        raise ArtifactError("digest_mismatch", f"the files make {revision_of(files)}, not {revision}")


class ModelStore:
    """`cache` holds at most the last model, whole, and one that is on its way."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def last(self) -> Path | None:
        """The model that was fetched last, when it is still whole; its digests were verified before it got its name."""
        try:
            kept = json.loads((self._cache / LAST).read_text())
            folder = self._cache / kept["folder"]
            sizes = {str(name): int(size) for name, size in kept["sizes"].items()}
            if all((folder / name).stat().st_size == size for name, size in sizes.items()):
                return _location(folder, list(sizes))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return None

    async def fetch(
        self, revision: str, files: list[ArtifactFile], told: Callable[[str, float], None] = lambda what, part: None
    ) -> Path:
        """What `--model` would name, verified: a folder, or a GGUF file. Raises ArtifactError.

        `told` gets the file that arrives and the part of all that is here, 0..1.
        """
        check_model(revision, files)
        folder = self._cache / revision.removeprefix("sha256:")
        partial = self._cache / f"partial-{folder.name}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            await self._fill(partial, files, told)
            if folder.exists():
                await asyncio.to_thread(shutil.rmtree, folder)
            partial.rename(folder)  # whole or not at all
            sizes = {file.name: file.size for file in files}
            (self._cache / LAST).write_text(json.dumps({"folder": folder.name, "sizes": sizes}))
        except OSError as error:
            raise ArtifactError("fetch_failed", f"writing {folder}: {error.strerror or error}") from None
        return _location(folder, [file.name for file in files])

    async def _fill(self, partial: Path, files: list[ArtifactFile], told: Callable[[str, float], None]) -> None:
        total, here = sum(file.size for file in files), 0
        missing = [file for file in files if not await _is_whole(partial / file.name, file)]
        here = total - sum(file.size for file in missing)
        free = shutil.disk_usage(partial).free
        if total - here > free:
            gb = f"{(total - here) / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free"
            raise ArtifactError("fetch_failed", f"{partial.parent}: {gb}: give the pod more ephemeral storage")
        async with new_session() as session:
            for file in missing:
                before, name = here, file.name

                def progress(size: int, before: int = before, name: str = name) -> None:
                    told(name, (before + size) / max(total, 1))

                arriving = partial / f"{file.name}.part"
                await download(session, file, arriving, progress)
                arriving.rename(partial / file.name)
                here += file.size


async def _is_whole(path: Path, file: ArtifactFile) -> bool:
    """Was it verified and renamed by an earlier attempt? A changed file of that name is fetched again."""
    try:
        if path.stat().st_size != file.size:
            return False
        await asyncio.to_thread(verify, path, file)
    except (OSError, ArtifactError):
        return False
    return True


def _location(folder: Path, names: list[str]) -> Path:
    ggufs = [name for name in names if name.endswith(".gguf")]
    return folder / ggufs[0] if len(ggufs) == 1 and len(names) == 1 else folder
