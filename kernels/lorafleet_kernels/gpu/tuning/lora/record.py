"""A `LoraTuning` as it stands in a file."""

from __future__ import annotations

from typing import Any

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape, Tiles, Variant
from lorafleet_kernels.gpu.tuning.fields import Malformed, as_microseconds, get, microseconds, positive
from lorafleet_kernels.gpu.tuning.lora.lookup import Found, LoraTuning, ModelShapes


def to_record(tuning: LoraTuning) -> dict[str, Any]:
    """`from_record` reads it."""
    shapes, step = tuning.shapes, tuning.step
    return {
        "dtype": shapes.dtype,
        "weights": shapes.weights,
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
                "microseconds": as_microseconds(found.seconds),
                "default_microseconds": as_microseconds(found.default_seconds),
            }
            for name, found in tuning.found.items()
        },
    }


def from_record(record: object, where: str) -> LoraTuning:
    """Raises Malformed. Whether the forms ship is not asked here."""
    step, groups = get(record, "step", dict, where), get(record, "groups", dict, where)
    sizes = [positive(step, name, f"{where}.step") for name in ("rows", "segments", "max_rank")]
    shapes, found = {}, {}
    for name, group in groups.items():
        at = f"{where}.groups.{name}"
        widths = get(group, "widths", list, at)
        if not widths or not all(type(width) is int and width > 0 for width in widths):
            raise Malformed(f"{at}.widths: {widths} are no widths")
        shapes[name] = GroupShape(positive(group, "k", at), tuple(widths))
        seconds = [microseconds(group, name, at) for name in ("microseconds", "default_microseconds")]
        found[name] = Found(_config(group, at), *seconds)
    dtype, weights = (get(record, name, str, where) for name in ("dtype", "weights"))
    model = ModelShapes(shapes, dtype, weights, positive(record, "grain", where))
    try:
        return LoraTuning(model, StepShape(*sizes), found)
    except ValueError as error:
        raise Malformed(f"{where}: {error}") from None


def _config(group: object, at: str) -> LoraConfig:
    variant = get(group, "variant", str, at)
    if variant not in list(Variant):
        raise Malformed(f"{at}.variant: {variant!r} is none of {', '.join(Variant)}")
    shrink, expand = _tiles(group, "shrink", at), _tiles(group, "expand", at)
    return LoraConfig(Variant(variant), shrink, expand, positive(group, "splits", at), positive(group, "lanes", at))


def _tiles(group: object, kernel: str, at: str) -> Tiles:
    text = get(group, kernel, str, at)
    try:
        return Tiles.parse(text)
    except ValueError as error:
        raise Malformed(f"{at}.{kernel}: {error}") from None
