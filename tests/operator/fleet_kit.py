"""What the operator's tests of real processes share: the fake runtime, base models, adapters, waiting."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lorafleet_operator.core.actions import StartReplica
from lorafleet_operator.core.objects import Artifact, BaseModel, Ref, Source
from lorafleet_operator.digests import DigestCache
from lorafleet_operator.sources import resolve_adapter, resolve_base

FAKE_RUNTIME = (sys.executable, str(Path(__file__).with_name("fake_runtime.py")))


async def until(condition: Callable[[], object], seconds: float = 8.0) -> None:
    """Wait for a condition; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


def write_base(folder: Path) -> Path:
    weights = folder / "model.gguf"
    weights.write_bytes(b"GGUF")
    return weights


def write_adapter(folder: Path, *, fake: str = "", weights: bytes = b"weights") -> Path:
    """A folder that passes for a PEFT adapter until someone reads its tensors; `fake` is the reason to fail with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "fake": fake}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def resolved_adapter(folder: Path) -> Artifact:
    found = resolve_adapter(Source(f"file:{folder}"), DigestCache())
    assert isinstance(found, Artifact), found
    return found


def start_action(folder: Path) -> StartReplica:
    """The plan's word to start the one replica of a base model `models/tiny` whose weights lie in `folder`."""
    base = BaseModel(Ref("models", "tiny"), "tiny", Source(f"file:{write_base(folder)}"))
    artifact = resolve_base(base.source, DigestCache())
    assert isinstance(artifact, Artifact), artifact
    return StartReplica("tiny-0", 0, base, artifact, "hash", "it is wanted")


def starts(folder: Path, name: str = "tiny") -> list[int]:
    """The pids of all fake processes started under this served name, oldest first."""
    path = folder / f"{name}.starts"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def alive(pid: int) -> bool:
    """Does a process with this pid run (and is not just a zombie)?"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
