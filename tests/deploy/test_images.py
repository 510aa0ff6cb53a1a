"""The Containerfiles say what the chart relies on; what is pinned in one place is pinned alike in the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import lorafleet_gateway
import lorafleet_operator
import lorafleet_runtime
from lorafleet_kernels.gpu.triton_driver import VARIABLE
from lorafleet_operator.core.manifests import USER

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "images").glob("*.Containerfile"))
CHART: dict[str, Any] = yaml.safe_load((ROOT / "charts/lorafleet/Chart.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "charts/lorafleet/values.yaml").read_text())


def pins(lock: str) -> dict[str, set[str]]:
    """Versions by package; a universal lock has several where they depend on the machine."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / "locks" / f"{lock}.txt").read_text(), re.M):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_image_runs_as_the_charts_user_from_a_base_of_ones_own_choice(file: Path) -> None:
    text = file.read_text()
    assert re.findall(r"^USER (.*)$", text, re.M) == [f"{USER}:{USER}"]
    assert VALUES["podSecurityContext"]["runAsUser"] == USER
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) - stages == {"${BASE_IMAGE}"}
    assert ":latest" not in text
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_image_installs_only_what_a_lock_pins_by_hash(file: Path) -> None:
    text = file.read_text().replace("\\\n", " ")
    installs = re.findall(r"pip [^&\n]*install [^&\n]*", text)
    assert installs
    for command in installs:
        lock = re.search(r"-r /build/(\S+)", command)
        assert lock and "--require-hashes" in command
        assert f"COPY locks/{lock[1]} " in text
        assert "://" not in (ROOT / "locks" / lock[1]).read_text(), "any index that serves the same files will do"


def test_each_image_that_the_chart_names_has_a_containerfile_of_the_charts_version() -> None:
    named = {Path(VALUES[part]["image"]["repository"]).name for part in ("operator", "gateway", "runtime")}
    assert {file.stem for file in FILES} == {*named, "quickstart"}
    for module in (lorafleet_operator, lorafleet_gateway, lorafleet_runtime):
        assert module.__version__ == CHART["appVersion"]
    assert f"lorafleet/quickstart:{CHART['appVersion']}" in (ROOT / "examples/cluster/files.yaml").read_text()


def test_torch_is_a_layer_of_its_own_below_everything_else() -> None:
    text = (ROOT / "images/runtime.Containerfile").read_text()
    copies = {
        name: re.findall(r"^COPY (?:--\S+ )?(\S+)", part, re.M)
        for name, part in re.findall(r"^FROM (.+)\n((?:(?!FROM ).*\n?)*)", text, re.M)
    }
    assert copies["${BASE_IMAGE} AS torch"] == ["locks/torch.txt"]
    assert copies["torch"][0] == "locks/runtime.txt"
    torch, runtime = pins("torch"), pins("runtime")
    assert torch.items() <= runtime.items(), "the second layer would install other versions over the first"


def test_a_runtime_without_a_compiler_brings_what_triton_would_compile() -> None:
    last = (ROOT / "images/runtime.Containerfile").read_text().rpartition("\nFROM ")[2]
    assert "gcc" not in last
    folder = re.search(rf"{VARIABLE}=(\S+)", last)
    assert folder and f"COPY --from=triton /triton {folder[1]}\n" in last


def test_neither_operator_nor_gateway_carries_torch() -> None:
    for part in ("operator", "gateway"):
        assert not {"torch", "triton"} & pins(part).keys()
