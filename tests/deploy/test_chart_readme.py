"""The chart's README is what its values and schema say, and leaves nothing unexplained."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "charts" / "readme.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_readme", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chart_readme"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_it_is_up_to_date(script: ModuleType) -> None:
    assert script.README.read_text() == script.readme(), "run `make chart-readme`"


def test_every_value_is_explained_once(script: ModuleType) -> None:
    values = list(script.values())

    assert [value.path for value in values if not value.says] == []
    assert len({value.path for value in values}) == len(values)
    by_path = {value.path: value for value in values}
    assert by_path["webhook.failurePolicy"].allowed == "Ignore or Fail"
    assert by_path["operator.replicas"].default == "1"
