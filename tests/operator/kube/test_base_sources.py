"""A base model in a cluster: read from a volume that it declares, or from the runtime's image."""

from __future__ import annotations

import pytest

from lorafleet_operator.core.objects import BaseModel, Ref, Source, Unresolved
from lorafleet_operator.kube.base_sources import declared_base


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("https://files/base", "UnsupportedSource"),
        ("pvc://weights/base", "VolumeNotDeclared"),
        ("package://w/m.gguf", ""),
    ],
)
def test_a_base_model_is_read_from_a_declared_volume_or_the_image(uri: str, reason: str) -> None:
    found = declared_base(BaseModel(Ref("models", "tiny"), "tiny", Source(uri)))
    assert found.reason == reason if isinstance(found, Unresolved) else reason == ""
