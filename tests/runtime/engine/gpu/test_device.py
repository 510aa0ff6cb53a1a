"""The device that an engine is given, and what is said of one that cannot be used."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu import device
from lorafleet_runtime.engine.gpu.device import a_card_is_there, device_for, driver_version, explained
from lorafleet_runtime.errors import ConfigError

CONFIG = EngineConfig("m", "m", device="cuda")
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
"""As torch says it, in a warning at the first look and in the error of whoever insists."""


def no_gpu(monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """What torch does where it has none that it can use."""

    def is_available() -> bool:
        warnings.warn(f"CUDA initialization: {says}", UserWarning, stacklevel=1)
        return False

    def init() -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.2")


@pytest.mark.parametrize(("asked", "ranks", "there", "given"), [
    ("auto", 1, True, "cuda"),
    ("auto", 1, False, "cpu"),
    ("auto", 2, True, "cpu"),  # several ranks run on CPUs only
    ("cpu", 1, True, "cpu"),
    ("cuda", 1, True, "cuda"),
])  # fmt: skip
def test_an_engine_runs_on_a_gpu_where_there_is_one_unless_told(
    asked: str, ranks: int, there: bool, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_for(replace(CONFIG, device=asked, tensor_parallel=ranks)) == given


def test_a_driver_too_old_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch, TOO_OLD)
    monkeypatch.setattr(device, "driver_version", lambda: "570.86.15")
    with pytest.raises(ConfigError) as raised:
        device_for(CONFIG)
    assert f"{raised.value}" == (
        f"--device cuda: the NVIDIA driver 570.86.15 is too old: it serves CUDA 12.8, and this torch "
        f"({torch.__version__}) is built for CUDA 13.2: install a newer driver, or a torch for CUDA 12.8"
    )


def test_a_gpu_that_is_not_there_is_an_error_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch, "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")
    with pytest.raises(ConfigError, match="--device cuda: torch sees no GPU here, as no NVIDIA driver answers: look"):
        device_for(CONFIG)


@pytest.mark.parametrize("there", [True, False])
def test_who_did_not_ask_is_told_once_of_a_card_that_stays_idle_and_of_none_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    no_gpu(monkeypatch, TOO_OLD)
    monkeypatch.setattr(device, "a_card_is_there", lambda: there)
    with capture_logs() as lines:
        assert device_for(replace(CONFIG, device="auto")) == "cpu"
    assert len(lines) == there
    assert all("it serves CUDA 12.8" in line["reason"] for line in lines)


@pytest.mark.parametrize(("said", "built_for", "says"), [
    ("Torch not compiled with CUDA enabled", None, r"is built without CUDA: install one"),
    ("No CUDA GPUs are available", "13.2", r"can use no GPU here \(No CUDA GPUs are available\): see `nvidia-smi`"),
    ("", "13.2", "it does not say why"),
    (TOO_OLD.replace("12080", "11040"), "12.4", r"the NVIDIA driver is too old: it serves CUDA 11\.4.* for CUDA 12\.4"),
])  # fmt: skip
def test_every_reason_is_said_in_terms_of_what_can_be_changed(said: str, built_for: str | None, says: str) -> None:
    assert re.search(says, explained(said, built_for, ""))


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has nothing to complain of")
def test_torchs_own_words_are_understood() -> None:
    """Of the torch that is installed, on a machine without a card."""
    with pytest.raises(ConfigError, match=r"look at `nvidia-smi`|built without CUDA|the NVIDIA driver"):
        device_for(CONFIG)


def test_the_system_says_whether_there_is_a_card_and_which_driver_serves_it(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not a_card_is_there(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert a_card_is_there(tmp_path)
    version = tmp_path / "version"
    assert driver_version(version) == ""
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 16\nGCC version: 12.2.0\n")
    assert driver_version(version) == "570.86.15"
    version.write_text("Open Kernel Module\n")
    assert driver_version(version) == ""
