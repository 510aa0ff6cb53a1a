"""Clients in a cluster: through a gateway that knows only what the operator publishes."""

from __future__ import annotations

import signal

import openai
import pytest

from tests.cluster.fleet import Fleet, GatewayProcess
from tests.cluster.lab import eventually

pytestmark = pytest.mark.slow

KEY = "sk-test-key"


def serving(fleet: Fleet, gateway: GatewayProcess) -> None:
    fleet.apply(fleet.base(), fleet.adapter("one"), *fleet.tenant(KEY))
    fleet.until_ready("one")
    eventually("the gateway serves it", lambda: gateway.complete("one", KEY).status_code == 200, 30)


def test_the_openai_client_streams_from_the_base_and_from_an_adapter(fleet: Fleet, gateway: GatewayProcess) -> None:
    serving(fleet, gateway)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
        assert sorted(model.id for model in client.models.list()) == ["one", "tiny"]
        for model in ("tiny", "one"):
            stream = client.completions.create(model=model, prompt="Hello", max_tokens=6, stream=True)
            assert len(list(stream)) >= 1
    assert gateway.complete("one", "sk-wrong").status_code == 401  # [AC-21]
    assert gateway.complete("nobody", KEY).status_code == 404


def test_serving_goes_on_without_an_operator_and_over_a_gateways_restart(fleet: Fleet, gateway: GatewayProcess) -> None:
    """[AC-09]"""
    serving(fleet, gateway)
    fleet.operator.stop(signal.SIGKILL)
    gateway.stop()
    gateway.start()
    eventually("the gateway is ready", gateway.ready, 30)
    answers = [gateway.complete("one", KEY).status_code for _ in range(5)]
    assert answers == [200] * 5


def test_a_rotated_key_counts_and_the_old_one_does_not_without_a_restart(fleet: Fleet, gateway: GatewayProcess) -> None:
    serving(fleet, gateway)
    fleet.apply(*fleet.tenant("sk-rotated"))
    eventually("the new key is taken", lambda: gateway.complete("one", "sk-rotated").status_code == 200, 45)
    assert gateway.complete("one", KEY).status_code == 401
