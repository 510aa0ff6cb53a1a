"""The folder where one fleet on this machine keeps its lock, documents, status and logs. Knows no fleet, only files."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorafleet_operator.errors import StateFolderBusy


def default_path(env: Mapping[str, str]) -> Path:
    """`$LORAFLEET_STATE_DIR`, else `$XDG_STATE_HOME/lorafleet/default`, else `~/.local/state/lorafleet/default`."""
    if chosen := env.get("LORAFLEET_STATE_DIR"):
        return Path(chosen).expanduser()
    state_home = env.get("XDG_STATE_HOME") or Path(env.get("HOME") or Path.home()) / ".local" / "state"
    return Path(state_home) / "lorafleet" / "default"


class StateFolder:
    """Paths under `root`, and the only writer of them while the lock is held."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.fleet = self.root / "fleet"
        self.logs = self.root / "logs"
        self.status = self.root / "status.json"
        self._lock = self.root / "lock"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Own the folder until the block ends, or this process does. Raises StateFolderBusy naming the owner's pid."""
        for folder in (self.root, self.fleet, self.logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _locked(descriptor):
                raise StateFolderBusy(
                    f"a fleet already runs with the state folder {self.root} (pid {self.owner() or 'unknown'}): "
                    "stop it first, or give this one its own with --state-dir"
                )
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)  # the lock goes with it

    def owner(self) -> int | None:
        """The pid of the process that holds the folder; None when nobody does. A dead owner's lock is no lock."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).decode().strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(descriptor)
        return None


def _locked(descriptor: int, attempts: int = 4) -> bool:
    """Take the lock; more than one attempt, for whoever asks for the owner holds it for a moment."""
    for attempt in range(attempts):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt < attempts - 1:
                time.sleep(0.05)
    return False


def write_json(path: Path, document: Any) -> None:
    """Replace `path` in one step, readable by its owner only: no reader sees half a document."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, ensure_ascii=False, separators=(",", ":"))
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any | None:
    """The document in `path`; None when there is none, or when it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
