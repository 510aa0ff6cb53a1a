"""Where the fleet and tenants documents come from: a folder of JSON files, watched by cheap polling.

The folder has one writer, which replaces files atomically, so what lies there is the newest there is. A
generation below the last one therefore means a new operator that counts afresh (another fleet, a lost state
folder): it is taken, and logged. Refusing it would freeze the gateway on replicas that no longer exist."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from lorafleet_gateway.core.fleet_model import (
    BaseFleet,
    Fleet,
    TenantsDocument,
    decode_fleet,
    decode_tenants,
    fleet_of,
)
from lorafleet_gateway.errors import DocumentError
from lorafleet_gateway.tenants import TenantTable

TENANTS = "tenants.json"
_Signature = tuple[int, int, int]
_UNREAD: _Signature = (0, 0, 0)


@dataclass(slots=True)
class _File:
    signature: _Signature
    document: BaseFleet | TenantsDocument | None  # None: never good
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Scan:
    files: dict[str, _File]
    changed: bool
    problem: str = ""


@dataclass(slots=True)
class FleetFolder:
    """The documents as last read, replaced as a whole, so that one request sees one fleet.

    `fleet` and `tenants` change only on the event loop, in `refresh`. A missing fleet file is a base model
    that is gone; a missing tenants file is no tenants. A file that cannot be read or decoded keeps its last
    good document."""

    folder: Path
    poll_seconds: float = 0.2
    fleet: Fleet = field(default_factory=Fleet)
    tenants: TenantTable = field(default_factory=TenantTable)
    on_change: list[Callable[[], None]] = field(default_factory=list)
    told_all: Callable[[], bool] = lambda: False
    """Has whoever fills the folder said that nothing is missing? Then a fleet without base models is a fleet."""
    _files: dict[str, _File] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _seen_fleet: bool = False
    _seen_tenants: bool = False
    _problem: str = ""

    @property
    def ready(self) -> bool:
        """Whether the tenants and the fleet have ever been read: before, every 404 would be a lie. A fleet is at least
        one document, or the word that there is none."""
        return self._seen_fleet and self._seen_tenants

    async def wait_changed(self, seconds: float) -> None:
        """Return at the next change of the documents, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def watch(self) -> None:
        """Refresh until cancelled. The scan runs in a thread, because a folder may be on a network file
        system."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.poll_seconds):
                    await self._hurry.wait()
            self._hurry.clear()
            told_all = self.told_all()  # before the scan, which then finds all of it
            self._take(await asyncio.to_thread(self._scan))
            self._seen_fleet = self._seen_fleet or told_all

    def hurry(self) -> None:
        """Something has changed: `watch` looks at once."""
        self._hurry.set()

    def refresh(self) -> bool:
        """Read what changed, now; whether anything did."""
        return self._take(self._scan())

    def _scan(self) -> _Scan:
        files: dict[str, _File] = {}
        changed = False
        try:
            with os.scandir(self.folder) as entries:
                found = sorted((e for e in entries if _is_document(e.name)), key=lambda entry: entry.name)
        except OSError as error:  # the folder itself is away: that says nothing about the base models
            return _Scan(self._files, False, f"cannot list {self.folder}: {error.strerror}")
        for entry in found:
            known = self._files.get(entry.name)
            try:
                stat = entry.stat()
                signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if known is not None and known.signature == signature:
                    files[entry.name] = known
                    continue
                data = Path(entry.path).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = f"cannot read it: {error.strerror}"
                files[entry.name] = _File(_UNREAD, known.document if known else None, problem)
                if known is not None and known.problem == problem:
                    continue
            else:
                files[entry.name] = _decode(entry.name, data, signature, known)
            changed = True
        return _Scan(files, changed or files.keys() != self._files.keys())

    def _take(self, scan: _Scan) -> bool:
        log = structlog.get_logger("lorafleet_gateway.fleet")
        if scan.problem and scan.problem != self._problem:
            log.error("fleet folder unreadable, the last good documents stay", problem=scan.problem)
        self._problem = scan.problem
        if not scan.changed:
            return False
        for name, file in scan.files.items():
            known = self._files.get(name)
            if file.problem and (known is None or known.problem != file.problem or known.signature != file.signature):
                log.error("document refused, the last good one stays", file=name, problem=file.problem)
            if known is not None and known.document and file.document:
                before, after = _generation(known.document), _generation(file.document)
                if after < before:
                    log.warning("generation went back, taken as a new operator", file=name, before=before, after=after)
        for name in self._files.keys() - scan.files.keys():
            log.info("document gone", file=name)
        self._files = scan.files
        self._publish()
        return True

    def _publish(self) -> None:
        documents = [file.document for file in self._files.values()]
        self.fleet = fleet_of(document for document in documents if isinstance(document, BaseFleet))
        tenants = next((document for document in documents if isinstance(document, TenantsDocument)), None)
        self.tenants = TenantTable(tenants)
        if self.tenants.ambiguous:
            structlog.get_logger("lorafleet_gateway.fleet").error(
                "keys that belong to several tenants are refused", keys=self.tenants.ambiguous
            )
        self._seen_fleet = self._seen_fleet or bool(self.fleet.bases)
        self._seen_tenants = self._seen_tenants or tenants is not None
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in self.on_change:
            listener()


def _is_document(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")  # ConfigMap volumes keep their bookkeeping under `..`


def _decode(name: str, data: bytes, signature: _Signature, known: _File | None) -> _File:
    try:
        if name == TENANTS:
            return _File(signature, decode_tenants(data))
        part = decode_fleet(data)
        described = f"{part.base.namespace}.{part.base.name}.json"
        if described != name:
            raise DocumentError(f"it describes {described.removesuffix('.json')}; name the file {described}")
    except DocumentError as error:
        return _File(signature, known.document if known else None, str(error))
    return _File(signature, part)


def _generation(document: BaseFleet | TenantsDocument) -> int:
    return document.generation if isinstance(document, TenantsDocument) else document.document.generation
