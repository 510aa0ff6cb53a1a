"""`--model` may name a file of an installed package, and says what is wrong when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model_location import model_location


def test_a_path_stays_as_it_is() -> None:
    assert model_location("/models/tiny") == "/models/tiny"


def test_a_file_of_an_installed_package_is_found() -> None:
    assert Path(model_location("package://lorafleet_runtime/py.typed")).name == "py.typed"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("package://no_such_package/model.gguf", "is not installed here"),
        ("package://lorafleet_runtime/absent.gguf", "has no file absent.gguf"),
        ("package://lorafleet_runtime/../secret", "must lie inside"),
        ("s3://bucket/model", "write a path"),
    ],
)
def test_what_cannot_be_found_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        model_location(text)
