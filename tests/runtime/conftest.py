"""A front end over a scripted engine: what the tests of the HTTP ports stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from lorafleet_runtime.adapters import Adapters
from lorafleet_runtime.artifacts import ArtifactStore
from lorafleet_runtime.metrics import Metrics
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer
from lorafleet_runtime.scripted_engine import ScriptedEngine
from lorafleet_runtime.server import create_app
from lorafleet_runtime.service import Service, Settings
from lorafleet_runtime.tokenizer import ModelTokenizer, load_tokenizer

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
async def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="none", base_url="http://runtime/v1", http_client=http, max_retries=0)
