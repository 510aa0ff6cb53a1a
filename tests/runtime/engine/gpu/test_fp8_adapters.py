"""An engine that keeps adapters in fp8: it says what one says that serves the dequantised adapters in full."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.fp8_rows import dequantise, quantise
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.gpu.runner import GpuRunner
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.tiny import TinyAdapter, random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AdapterState, AddRequest, LoadAdapter, Sampling
from tests.runtime.engine.gpu.traffic import RANKS, TARGETS, serve

CONFIG = tiny_config("qwen3")


def dequantised(adapter: TinyAdapter) -> TinyAdapter:
    """What an adapter stands for in fp8. Its α/r, which B is multiplied with before, must be a power of two."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in adapter.tensors.items():
        rows = tensor if "lora_A" in name else tensor.t()
        held = dequantise(*quantise(rows))
        tensors[name] = held if "lora_A" in name else held.t().contiguous()
    return TinyAdapter(tensors, adapter.config)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    model = save_tiny_model(tmp_path / "model", CONFIG, seed=4)
    plain = {
        name: random_adapter(CONFIG, RANKS[name], targets, seed, alpha=2.0 * RANKS[name], strength=2.0)
        for seed, (name, targets) in enumerate(TARGETS.items())
    }
    kinds: Mapping[str, Callable[[TinyAdapter], TinyAdapter]] = {"auto": dequantised, "fp8": lambda adapter: adapter}
    started: list[Engine] = []

    def make_engine(adapter_dtype: str, kernels: str, of: str = "", kv: str = "auto") -> Engine:
        """`of`: as what the adapters are saved; "auto": dequantised, as an engine of full precision is to serve them.
        Its kernels are plain ones here, which `test_runner` finds to say the same as Triton's, and are much faster."""
        monkeypatch.setenv("LORAFLEET_KERNELS", kernels)
        config = EngineConfig(
            str(model), "tiny", dtype="float32", max_model_len=64, max_num_seqs=6, max_batched_tokens=24,
            memory_bytes=2**20, threads=1, overlap="off", adapter_dtype=adapter_dtype, kv_dtype=kv,
        )  # fmt: skip
        engine = start(config, lambda message, fraction: None)
        started.append(engine)
        for name, adapter in plain.items():
            folder = save_adapter(tmp_path / f"{adapter_dtype}-{of}-{kv}-{name}", kinds[of or adapter_dtype](adapter))
            engine.handle(LoadAdapter(name, "r1", str(folder)))
        while any(a.state == "Loading" for a in engine.state().adapters):
            engine.step()
        assert all(a.state == "Ready" for a in engine.state().adapters)
        return engine

    yield make_engine
    for engine in started:
        engine.close()


def say(engine: Engine, adapter: str, prompt: list[int]) -> list[int]:
    engine.handle(AddRequest(adapter, prompt, Sampling(max_tokens=3, temperature=0), adapter))
    said: list[int] = []
    while engine.has_work:
        for delta in engine.step():
            assert not delta.error
            said += delta.token_ids
    return said


def states(engine: Engine) -> dict[str, AdapterState]:
    return {adapter.id: adapter for adapter in engine.state().adapters}


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
def test_tokens_are_those_of_the_dequantised_adapters(make: Callable[..., Engine]) -> None:
    exact, fp8 = make("auto", "reference"), make("fp8", "triton")
    assert isinstance(fp8._runner, GpuRunner)
    if not torch.cuda.is_available():  # as on a card: decodes over the memory of graphs, prompts beside it
        fp8._runner.use_graphs(6, 8, lambda step: step)
    expected = serve(exact)

    assert serve(fp8) == expected
    of_float32 = {name: (a.pages, a.bytes) for name, a in states(exact).items()}
    for name, adapter in states(fp8).items():
        pages, size = of_float32[name]
        assert adapter.pages <= -(-pages // 4) + 1, "a quarter of float32, and the scales"
        assert adapter.bytes * pages == size * adapter.pages
    assert serve(make("auto", "reference", of="fp8")) != expected, "the adapters themselves say something else"


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
def test_keys_and_values_may_be_of_8_bits_too(make: Callable[..., Engine]) -> None:
    exact, fp8 = make("auto", "reference", kv="fp8"), make("fp8", "triton", kv="fp8")

    for adapter, length in (("attention", 20), ("mlp", 3)):
        prompt = [*range(3, 3 + length)]
        assert say(fp8, adapter, prompt) == say(exact, adapter, prompt)


@pytest.mark.interpreted
def test_adapters_with_extras_are_served(make: Callable[..., Engine], tmp_path: Path) -> None:
    adapter = dequantised(random_adapter(CONFIG, 4, ("q_proj", "down_proj"), 7, alpha=4.0, strength=2.0))
    norms = {
        f"base_model.model.model.layers.{layer}.input_layernorm.weight": torch.linspace(0.5, 1.5, CONFIG.hidden_size)
        for layer in range(CONFIG.num_layers)
    }
    folder = save_adapter(tmp_path / "norms", TinyAdapter({**adapter.tensors, **norms}, adapter.config))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "modules_to_save": ["input_layernorm"]}))
    outputs = []
    for engine in (make("auto", "reference"), make("fp8", "triton")):
        engine.handle(LoadAdapter("few", "r2", str(folder)))
        while any(a.state == "Loading" for a in engine.state().adapters):
            engine.step()
        assert states(engine)["few"].state == "Ready", states(engine)["few"].message
        outputs.append(
            [say(engine, adapter, [*range(3, 3 + length)]) for adapter, length in (("few", 18), ("mlp", 4))]
        )

    assert outputs[0] == outputs[1]
    assert outputs[0][0] != say(make("auto", "reference"), "few", [*range(3, 21)]), "the norms are heard"


def test_plain_operations_refuse_fp8_by_name(make: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match=r"--adapter-dtype fp8 needs Triton's kernels.*on cpu"):
        make("fp8", "reference")
