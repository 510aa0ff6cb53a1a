"""What a file of tunings says of one card, and its JSON: readable, checked field by field when it is read.

One file a card. It holds runs of the tuner, each with its circumstances, and what each found that no later one found
anew. All are of the same kernels; `kernels` names their source by its digest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionTuning
from lorafleet_kernels.gpu.tuning.attention.record import from_record as read_attention
from lorafleet_kernels.gpu.tuning.attention.record import to_record as attention_record
from lorafleet_kernels.gpu.tuning.fields import Malformed, get, positive
from lorafleet_kernels.gpu.tuning.lora.lookup import LoraTuning
from lorafleet_kernels.gpu.tuning.lora.record import from_record as read_lora
from lorafleet_kernels.gpu.tuning.lora.record import to_record as lora_record

FORMAT = 2
"""A file of another one is not read: its forms are of other kernels too, whose digest would leave them out."""
LORA, ATTENTION = "lora", "attention"

Tuning = LoraTuning | AttentionTuning


@dataclass(frozen=True, slots=True)
class Run:
    """`about`: date, command, commit, versions of what compiled and ran the kernels."""

    about: Mapping[str, str]
    tunings: tuple[Tuning, ...]


@dataclass(frozen=True, slots=True)
class Document:
    card: Card
    kernels: str
    runs: tuple[Run, ...]

    @property
    def tunings(self) -> tuple[Tuning, ...]:
        """Of all runs, the latest first."""
        return tuple(tuning for run in reversed(self.runs) for tuning in run.tunings)

    def with_run(self, run: Run) -> Document:
        """And what it found in place of what was known of the same; runs of which nothing is left are gone."""
        new = [tuning.key for tuning in run.tunings]
        kept = [replace(old, tunings=tuple(t for t in old.tunings if t.key not in new)) for old in self.runs]
        return replace(self, runs=(*(old for old in kept if old.tunings), run))


def to_json(document: Document) -> str:
    """As it is stored; `from_json` reads it."""
    card = document.card
    record = {
        "format": FORMAT,
        "card": {"name": card.name, "capability": list(card.capability), "processors": card.processors},
        "kernels": document.kernels,
        "runs": [{"about": dict(run.about), "tunings": list(map(_record, run.tunings))} for run in document.runs],
    }
    # What holds no other object is one line: a group's form is read at a glance.
    return re.sub(r"\{[^{}]*\}", lambda found: re.sub(r"\n *", " ", found[0]), json.dumps(record, indent=1)) + "\n"


def from_json(text: str) -> Document:
    """Raises Malformed. Whether the forms ship is not asked here."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise Malformed(f"no JSON: {error}") from None
    if get(record, "format", int, "") != FORMAT:
        raise Malformed(f"format {record['format']}: this release reads {FORMAT}")
    card = get(record, "card", dict, "")
    capability = get(card, "capability", list, "card")
    if len(capability) != 2 or not all(type(part) is int for part in capability):
        raise Malformed(f"card.capability: {capability} is no pair of numbers")
    return Document(
        Card(
            get(card, "name", str, "card"), (capability[0], capability[1]), positive(card, "processors", "card")
        ),
        get(record, "kernels", str, ""),
        tuple(_read_run(run, f"runs[{i}]") for i, run in enumerate(get(record, "runs", list, ""))),
    )  # fmt: skip


def _record(tuning: Tuning) -> dict[str, Any]:
    """With a name for each kind."""
    if isinstance(tuning, LoraTuning):
        return {"of": LORA, **lora_record(tuning)}
    return {"of": ATTENTION, **attention_record(tuning)}


def _read_run(record: object, where: str) -> Run:
    about = get(record, "about", dict, where)
    if not all(isinstance(value, str) for value in about.values()):
        raise Malformed(f"{where}.about: all values must be strings")
    tunings = get(record, "tunings", list, where)
    return Run(about, tuple(_read_tuning(each, f"{where}.tunings[{i}]") for i, each in enumerate(tunings)))


def _read_tuning(record: object, where: str) -> Tuning:
    kind = get(record, "of", str, where)
    if kind == LORA:
        return read_lora(record, where)
    if kind == ATTENTION:
        return read_attention(record, where)
    raise Malformed(f"{where}.of: {kind!r} is none of {LORA}, {ATTENTION}")
