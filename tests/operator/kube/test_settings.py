"""What the operator learns from its pod."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lorafleet_operator.errors import UsageError
from lorafleet_operator.kube.settings import account_of, cluster_settings

TOKENS = {"LORAFLEET_SERVING_TOKEN": "s" * 16, "LORAFLEET_ADMIN_TOKEN": "a" * 16}


def token(claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{payload}.signature"


def test_a_pods_token_says_which_account_owns_what_the_operator_makes() -> None:
    claims = {"kubernetes.io": {"namespace": "home", "serviceaccount": {"name": "lorafleet-operator", "uid": "u-1"}}}
    assert account_of(token(claims), "home") == {
        "apiVersion": "v1", "kind": "ServiceAccount", "name": "lorafleet-operator", "uid": "u-1",
    }  # fmt: skip
    assert account_of(token(claims), "elsewhere") is None, "an owner must be of the same namespace"


@pytest.mark.parametrize("text", ["", "opaque", "a.b.c", "a.e30.c", token([]), token({"kubernetes.io": {}})])
def test_a_token_of_another_kind_owns_nothing(text: str) -> None:
    assert account_of(text, "home") is None


def test_two_equal_or_short_tokens_are_refused() -> None:
    for env in ({}, {**TOKENS, "LORAFLEET_ADMIN_TOKEN": "s" * 16}, {**TOKENS, "LORAFLEET_SERVING_TOKEN": "short"}):
        with pytest.raises(UsageError, match="LORAFLEET_"):
            cluster_settings(namespace="home", image="runtime:1", env=env)


def test_the_environment_says_what_pods_run_with() -> None:
    env = {**TOKENS, "LORAFLEET_POD_ENV_HF_HUB_OFFLINE": "1", "LORAFLEET_POD_COMMAND": "python -m lorafleet_runtime"}
    images = cluster_settings(namespace="home", image="runtime:1", env=env).images
    assert images.environment == {"HF_HUB_OFFLINE": "1"}
    assert images.command == ("python", "-m", "lorafleet_runtime")
