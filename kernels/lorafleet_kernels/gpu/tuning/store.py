"""Where tunings are kept: those that ship lie beside this file, a machine's own in the user's cache folder.

Whatever cannot be used is left out with one log line that says why; the default forms serve then."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lorafleet_kernels.cache_folder import cache_folder
from lorafleet_kernels.gpu import kernels
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.step import why_not
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionTuning
from lorafleet_kernels.gpu.tuning.attention.lookup import why_not as why_no_attention
from lorafleet_kernels.gpu.tuning.document import Document, Run, Tuning, from_json, to_json
from lorafleet_kernels.gpu.tuning.fields import Malformed

log = logging.getLogger("lorafleet.kernels")

SHIPPED = Path(__file__).with_name("cards")
TUNED = (
    "lora_shrink.py", "lora_expand.py", "lora_delta.py", "lora_pages.py",
    "paged_decode.py", "paged_decode_fp8.py", "paged_prefill.py", "paged_prefill_fp8.py", "fp8_pairs.py",
    "last_arriver.py",
)  # fmt: skip
"""The kernels whose forms are measured: where one of these changes, what was measured before is of others."""


class CannotStore(Exception):
    """Tunings cannot be kept there; the message says why, and what to do."""


def own_folder() -> Path:
    """`$LORAFLEET_TUNINGS`, or `lorafleet/tunings` in the user's cache folder."""
    return cache_folder("LORAFLEET_TUNINGS", "tunings")


def file_name(card: Card) -> str:
    """By name and size: one name is sold with several numbers of processors."""
    return f"{re.sub('[^a-z0-9]+', '-', card.name.lower()).strip('-')}-{card.processors}.json"


@cache
def kernels_digest() -> str:
    """Of the source of `TUNED`."""
    digest = hashlib.sha256()
    for name in TUNED:
        digest.update(name.encode() + (Path(kernels.__path__[0]) / name).read_bytes())
    return digest.hexdigest()[:32]


def load(card: Card, folders: Sequence[Path] = ()) -> list[Tuning]:
    """What is known of this card and can be used, what was measured here before what shipped, the latest first."""
    found: list[Tuning] = []
    for folder in folders or (own_folder(), SHIPPED):
        path = folder / file_name(card)
        try:
            document = from_json(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, Malformed) as error:
            log.warning("tunings in %s are left out, the default forms serve: %s", path, error)
            continue
        if reason := _stale(document, card):
            log.warning("tunings in %s are left out, the default forms serve: %s", path, reason)
            continue
        reasons = [_unusable(tuning, card) for tuning in document.tunings]
        if lost := list(filter(None, reasons)):
            log.warning("%d of %d tunings in %s are left out: %s", len(lost), len(reasons), path, lost[0])
        found += [tuning for tuning, reason in zip(document.tunings, reasons, strict=True) if not reason]
    return found


def store(run: Run, card: Card, folder: Path) -> Path:
    """Add a run to the card's file; what was measured of other kernels goes. Several processes may do this at once.

    Raises CannotStore."""
    path = folder / file_name(card)
    new = Document(card, kernels_digest(), ())
    try:
        with _locked(folder):
            try:
                old = from_json(path.read_text())
            except (FileNotFoundError, UnicodeDecodeError, Malformed):
                old = new
            document = (new if _stale(old, card) else old).with_run(run)
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", suffix=".json", delete=False) as scratch:
                try:
                    scratch.write(to_json(document))
                    scratch.flush()
                    os.fsync(scratch.fileno())
                    os.chmod(scratch.name, 0o644)
                    os.replace(scratch.name, path)
                except BaseException:
                    os.unlink(scratch.name)
                    raise
    except OSError as error:
        raise CannotStore(_cannot(folder, error)) from error
    return path


def check_folder(folder: Path) -> None:
    """Before minutes are spent on what goes there. Raises CannotStore."""
    try:
        with _locked(folder):
            pass
    except OSError as error:
        raise CannotStore(_cannot(folder, error)) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cannot(folder: Path, error: OSError) -> str:
    return f"cannot write to {folder}: {error}; set LORAFLEET_TUNINGS to a folder"


def _stale(document: Document, card: Card) -> str:
    if document.card != card:
        return f"they are of {document.card}, this is {card}"
    if document.kernels != kernels_digest():
        return f"they are of other kernels ({document.kernels}, these are {kernels_digest()}): tune anew"
    return ""


def _unusable(tuning: Tuning, card: Card) -> str:
    if isinstance(tuning, AttentionTuning):
        return why_no_attention(tuning, card.capability)
    reasons = (why_not(found.config, tuning.shapes.grain) for found in tuning.found.values())
    return next(filter(None, reasons), "")
