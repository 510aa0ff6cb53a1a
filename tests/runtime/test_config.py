from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lorafleet_runtime.cli import main
from lorafleet_runtime.config import EngineConfig, parse_size
from lorafleet_runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("1Gi", 2**30), ("512Mi", 2**29), ("1.5G", 1_500_000_000), ("4096", 4096), (" 2Ki ", 2048), ("3k", 3000)],
)
def test_sizes_are_kubernetes_quantities(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1gi", "Gi", "-1Gi", "1 Gi extra", "1e3"])
def test_a_size_that_is_not_one_names_the_flag(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        parse_size(text)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig(model=str(tmp_path), served_name="tiny")


def test_the_defaults_are_accepted(config: EngineConfig) -> None:
    assert config.check() is config


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("served_name", "", "--served-name"),
        ("model", "/nowhere/at/all", "--model"),
        ("dtype", "int3", "--dtype"),
        ("max_model_len", -1, "--max-model-len"),
        ("max_num_seqs", 0, "--max-num-seqs"),
        ("max_batched_tokens", 63, "--max-batched-tokens"),
        ("memory_bytes", 5, "--memory"),
        ("max_lora_rank", 1025, "--max-lora-rank"),
        ("threads", -1, "--threads"),
        ("autotune", -1, "--autotune"),
        ("autotune", 3601, "--autotune"),
    ],
)
def test_every_bound_names_its_flag(config: EngineConfig, field: str, value: Any, flag: str) -> None:
    changed = dataclasses.replace(config, **{field: value})

    with pytest.raises(ConfigError, match=f"^{flag} "):
        changed.check()


def test_a_cpu_has_nothing_to_tune(config: EngineConfig) -> None:
    with pytest.raises(ConfigError, match="--autotune 60 needs a GPU: leave out --device cpu"):
        dataclasses.replace(config, device="cpu", autotune=60).check()


def test_a_config_survives_the_way_to_the_engine(config: EngineConfig) -> None:
    assert EngineConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"model": "m", "served_name": "s", "colour": 1}', '{"model": "m", "served_name": 7}'],
)
def test_what_is_not_a_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--config"):
        EngineConfig.from_json(text)


@pytest.mark.parametrize(
    "extra", [["--memory", "much"], ["--adapter", "no-equals-sign"], ["--adapter", "acme.x=/nowhere/at/all"]]
)
def test_the_command_line_ends_with_2_and_one_line(
    extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--model", str(tmp_path), *extra])

    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"lorafleet-runtime: {extra[0]}")
    assert message.count("\n") == 1
