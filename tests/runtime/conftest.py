"""A front end over a scripted engine: what the tests of the HTTP ports stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from lorafleet_runtime.frontend.adapters import Adapters
from lorafleet_runtime.frontend.admin import create_admin_app
from lorafleet_runtime.frontend.artifact_files import revision_of
from lorafleet_runtime.frontend.artifacts import ArtifactStore, read_folder
from lorafleet_runtime.frontend.metrics import Metrics
from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.server import create_app
from lorafleet_runtime.frontend.service import Service, Settings
from lorafleet_runtime.frontend.tokenizer import ModelTokenizer, load_tokenizer
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer

EOS = 258


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return load_tokenizer(str(save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture
async def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda request: [*"Hello, wörld 😀!".encode(), EOS])


@pytest.fixture
def service(engine: ScriptedEngine, tokenizer: ModelTokenizer, tmp_path: Path) -> Service:
    return Service(
        engine=engine,
        tokenizer=tokenizer,
        adapters=Adapters(engine, ArtifactStore(tmp_path)),
        settings=Settings("tiny"),
        metrics=Metrics(engine, "tiny"),
    )


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://runtime") as client:
        yield client


@pytest.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(create_app(service))  # the library that the openai package is built on
    async with httpx2.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(api_key="none", base_url="http://runtime/v1", http_client=http, max_retries=0)


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_admin_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


@pytest.fixture
def order(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """The body that orders an adapter; its files lie under that name in the test's folder."""

    def make(name: str) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(name)
        (folder / "adapter_model.safetensors").write_text(name)
        files = read_folder(folder)
        described = [{"name": f.name, "url": f.url, "sha256": f.sha256, "size": f.size} for f in files]
        return {"revision": revision_of(files), "files": described}

    return make


@pytest.fixture
def first(order: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return order("first")
