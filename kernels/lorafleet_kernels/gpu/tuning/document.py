"""What a file of tunings says of one card, and its JSON: readable, checked field by field when it is read.

One file a card. It holds runs of the tuner, each with its circumstances, and what each found that no later one found
anew. All are of the same kernels; `kernels` names their source by its digest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape, Tiles, Variant
from lorafleet_kernels.gpu.tuning.lookup import Found, ModelShapes, Tuning

FORMAT = 1
_Kind = TypeVar("_Kind")


class Malformed(ValueError):
    """A file of tunings is not one; the message names the field."""


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
        """And what it found in place of what was known of the same steps; runs of which nothing is left are gone."""
        new = [(tuning.shapes, tuning.step) for tuning in run.tunings]
        kept = [
            replace(old, tunings=tuple(t for t in old.tunings if (t.shapes, t.step) not in new)) for old in self.runs
        ]
        return replace(self, runs=(*(old for old in kept if old.tunings), run))


def to_json(document: Document) -> str:
    """As it is stored; `from_json` reads it."""
    card = document.card
    record = {
        "format": FORMAT,
        "card": {"name": card.name, "capability": list(card.capability), "processors": card.processors},
        "kernels": document.kernels,
        "runs": [{"about": dict(run.about), "tunings": list(map(_tuning, run.tunings))} for run in document.runs],
    }
    # What holds no other object is one line: a group's form is read at a glance.
    return re.sub(r"\{[^{}]*\}", lambda found: re.sub(r"\n *", " ", found[0]), json.dumps(record, indent=1)) + "\n"


def from_json(text: str) -> Document:
    """Raises Malformed. Whether the forms ship is not asked here."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise Malformed(f"no JSON: {error}") from None
    if _get(record, "format", int, "") != FORMAT:
        raise Malformed(f"format {record['format']}: this release reads {FORMAT}")
    card = _get(record, "card", dict, "")
    capability = _get(card, "capability", list, "card")
    if len(capability) != 2 or not all(type(part) is int for part in capability):
        raise Malformed(f"card.capability: {capability} is no pair of numbers")
    return Document(
        Card(
            _get(card, "name", str, "card"), (capability[0], capability[1]), _positive(card, "processors", "card")
        ),
        _get(record, "kernels", str, ""),
        tuple(_read_run(run, f"runs[{i}]") for i, run in enumerate(_get(record, "runs", list, ""))),
    )  # fmt: skip


def _tuning(tuning: Tuning) -> dict[str, Any]:
    shapes, step = tuning.shapes, tuning.step
    return {
        "dtype": shapes.dtype,
        "grain": shapes.grain,
        "step": {"rows": step.rows, "segments": step.segments, "max_rank": step.max_rank},
        "groups": {
            name: {
                "k": shapes.groups[name].k,
                "widths": list(shapes.groups[name].widths),
                "variant": found.config.variant.value,
                "shrink": str(found.config.shrink),
                "expand": str(found.config.expand),
                "splits": found.config.splits,
                "lanes": found.config.lanes,
                "microseconds": round(1e6 * found.seconds, 3),
                "default_microseconds": round(1e6 * found.default_seconds, 3),
            }
            for name, found in tuning.found.items()
        },
    }


def _read_run(record: object, where: str) -> Run:
    about = _get(record, "about", dict, where)
    if not all(isinstance(value, str) for value in about.values()):
        raise Malformed(f"{where}.about: all values must be strings")
    tunings = _get(record, "tunings", list, where)
    return Run(about, tuple(_read_tuning(each, f"{where}.tunings[{i}]") for i, each in enumerate(tunings)))


def _read_tuning(record: object, where: str) -> Tuning:
    step, groups = _get(record, "step", dict, where), _get(record, "groups", dict, where)
    sizes = [_positive(step, name, f"{where}.step") for name in ("rows", "segments", "max_rank")]
    shapes, found = {}, {}
    for name, group in groups.items():
        at = f"{where}.groups.{name}"
        widths = _get(group, "widths", list, at)
        if not widths or not all(type(width) is int and width > 0 for width in widths):
            raise Malformed(f"{at}.widths: {widths} are no widths")
        shapes[name] = GroupShape(_positive(group, "k", at), tuple(widths))
        seconds = [_microseconds(group, name, at) for name in ("microseconds", "default_microseconds")]
        found[name] = Found(_config(group, at), *seconds)
    model = ModelShapes(shapes, _get(record, "dtype", str, where), _positive(record, "grain", where))
    try:
        return Tuning(model, StepShape(*sizes), found)
    except ValueError as error:
        raise Malformed(f"{where}: {error}") from None


def _config(group: object, at: str) -> LoraConfig:
    variant = _get(group, "variant", str, at)
    if variant not in list(Variant):
        raise Malformed(f"{at}.variant: {variant!r} is none of {', '.join(Variant)}")
    shrink, expand = _tiles(group, "shrink", at), _tiles(group, "expand", at)
    return LoraConfig(Variant(variant), shrink, expand, _positive(group, "splits", at), _positive(group, "lanes", at))


def _tiles(group: object, kernel: str, at: str) -> Tiles:
    try:
        return Tiles.parse(_get(group, kernel, str, at))
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"{at}.{kernel}: {error}") from None


def _get(record: object, name: str, kind: type[_Kind], where: str) -> _Kind:
    if not isinstance(record, dict):
        raise Malformed(f"{where or 'the file'}: must be an object")
    path = f"{where}.{name}" if where else name
    if name not in record:
        raise Malformed(f"{path}: missing")
    value = record[name]
    if type(value) is not kind:
        raise Malformed(f"{path}: {value!r} is no {kind.__name__}")
    return value


def _positive(record: object, name: str, where: str) -> int:
    value = _get(record, name, int, where)
    if value < 1:
        raise Malformed(f"{where}.{name}: {value} must be at least 1")
    return value


def _microseconds(record: object, name: str, where: str) -> float:
    value = _get(record, name, float, where)
    if not 0 < value < float("inf"):
        raise Malformed(f"{where}.{name}: {value} is no time")
    return value / 1e6
