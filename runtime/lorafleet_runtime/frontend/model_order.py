"""The operator's word on which model this replica serves: wanted, on its way, or here. Knows no HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import ArtifactFile
from lorafleet_runtime.frontend.model_store import ModelStore, check_model

log = structlog.get_logger("runtime")

ASKING = "the operator has not said yet where the model is"


class ModelOrder:
    """`wants` says whether an order is awaited, `message` and `progress` (0..1) how far the last one is."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self._here: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        self.message = ASKING
        self.progress = 0.0
        self.version = 0
        if (last := store.last()) is not None:
            log.info("the model of this pod's last start is here", model=str(last))
            self._here.set_result(last)

    @property
    def wants(self) -> bool:
        return self._task is None and not self._here.done()

    @property
    def known(self) -> Path | None:
        """What `--model` would name, when it is here."""
        return self._here.result() if self._here.done() else None

    def put(self, revision: str, files: list[ArtifactFile]) -> None:
        """Fetch this model, unless one is on its way. Raises ArtifactError for what can never be one."""
        check_model(revision, files)
        if self.wants:
            self._tell("fetching the model", 0.0)
            self._task = asyncio.create_task(self._fetch(revision, files))

    async def path(self) -> Path:
        """What `--model` would name, once it is here."""
        return await asyncio.shield(self._here)

    async def close(self) -> None:
        """Give up what is on its way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _fetch(self, revision: str, files: list[ArtifactFile]) -> None:
        try:
            found = await self._store.fetch(revision, files, self._progress)
        except ArtifactError as error:
            log.warning("the model could not be had", reason=error.code, message=error.message)
            self._task = None
            self._tell(error.message, self.progress)
            return
        except Exception as error:  # what breaks in a new way must show in the state, not vanish in a task
            self._task = None
            self._tell(f"fetching the model: {type(error).__name__}", self.progress)
            return
        self._tell("the model is here", 1.0)
        self._here.set_result(found)

    def _progress(self, name: str, part: float) -> None:
        if part - self.progress >= 0.01:
            self._tell(f"fetching {name}", part)

    def _tell(self, message: str, progress: float) -> None:
        self.message, self.progress = message, round(progress, 3)
        self.version += 1
