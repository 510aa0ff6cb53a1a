"""What a BaseModel becomes in a cluster: restricted pods, least rights, and nothing of any adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafleet_operator.core.manifests import ADAPTERS_GATE, Images, Peers, workload
from lorafleet_operator.core.objects import BaseModel, Engine, Ref, Source
from lorafleet_operator.core.runtime_arguments import arguments, model_argument

BASE = BaseModel(Ref("models", "smol"), "smollm2", Source("package://weights/model.gguf"))
TOKENS = {"LORAFLEET_SERVING_TOKEN": "s" * 20, "LORAFLEET_ADMIN_TOKEN": "a" * 20}


def made(base: BaseModel = BASE, replicas: int = 2, **images: Any) -> dict[str, dict[str, Any]]:
    peers = images.pop("peers", None)
    manifests = workload(
        base, uid="u1", spec_hash="h1", replicas=replicas, images=Images("runtime:1", **images), tokens=TOKENS,
        peers=peers,
    )  # fmt: skip
    return {manifest["kind"]: manifest for manifest in manifests}


def test_every_object_is_owned_by_its_base_model_and_labelled() -> None:
    for manifest in made().values():
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("BaseModel", "smol", "u1", True)
        assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "lorafleet"
        assert manifest["metadata"]["namespace"] == "models"


def test_a_pod_is_restricted_and_holds_no_credentials_of_the_cluster() -> None:
    pod = made()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


def test_no_token_is_in_a_pod_or_its_command_line() -> None:
    deployment = str(made()["Deployment"])
    assert all(token not in deployment for token in TOKENS.values())


def test_a_single_replica_has_no_disruption_budget_that_would_block_a_drain() -> None:
    assert "PodDisruptionBudget" in made(replicas=2)
    assert "PodDisruptionBudget" not in made(replicas=1)


def test_only_gateways_and_the_operator_of_one_release_reach_a_pod_when_it_is_to_be_so() -> None:
    assert "NetworkPolicy" not in made()

    spec = made(peers=Peers("home", "mine", {"team": "metrics"}))["NetworkPolicy"]["spec"]
    serving, admin = spec["ingress"]
    ((gateway, scraper), (operator,)) = serving["from"], admin["from"]
    assert spec["podSelector"]["matchLabels"]["lorafleet.dev/base-model"] == "smol"
    assert (serving["ports"], admin["ports"]) == ([{"port": "http"}], [{"port": "admin"}])
    for peer, component in ((gateway, "gateway"), (operator, "operator")):
        assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "home"}
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == component
    assert scraper == {"namespaceSelector": {"matchLabels": {"team": "metrics"}}}
    policy = made(peers=Peers("home", "mine", {}, {"team": "edge"}))["NetworkPolicy"]["spec"]
    assert policy["ingress"][0]["from"][1] == {"namespaceSelector": {"matchLabels": {"team": "edge"}}}


def test_a_new_pod_counts_as_ready_only_once_its_adapters_are_there_and_old_ones_stay_until_then() -> None:
    spec = made()["Deployment"]["spec"]
    assert spec["template"]["spec"]["readinessGates"] == [{"conditionType": ADAPTERS_GATE}]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_replace_gives_up_a_pod_before_it_starts_another() -> None:
    base = replace(BASE, runtime={"updateStrategy": "Replace"})
    assert made(base)["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_pod_may_drain_for_as_long_as_its_base_model_says_before_it_is_killed() -> None:
    base = replace(BASE, runtime={"drainSeconds": 120})
    pod = made(base)["Deployment"]["spec"]["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > hook + 120
    assert arguments(base, 120)[-3] == "120"


def test_what_the_user_asks_of_nodes_is_passed_on_as_it_is() -> None:
    asked = {
        "image": "mine:2", "resources": {"limits": {"nvidia.com/gpu": 1}}, "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}], "runtimeClassName": "nvidia",
        "artifactVolumes": [{"name": "weights", "claimName": "claim"}],
    }  # fmt: skip
    pod = made(replace(BASE, runtime=asked))["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "mine:2"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert (pod["nodeSelector"], pod["runtimeClassName"]) == ({"gpu": "h100"}, "nvidia")
    assert {"name": "artifacts-weights", "mountPath": "/artifacts/weights", "readOnly": True} in container[
        "volumeMounts"
    ]


def test_a_replica_of_several_ranks_is_told_how_many() -> None:
    spread = replace(BASE, engine=Engine(tensor_parallel=4))
    assert " --tensor-parallel 4 " in " ".join(arguments(spread, 30))
    assert "--tensor-parallel" not in arguments(BASE, 30)


def test_a_replica_guesses_at_tokens_only_when_it_is_to() -> None:
    speculates = replace(BASE, engine=Engine(speculative_tokens=8))
    assert " --speculate 8 " in " ".join(arguments(speculates, 30))
    assert "--speculate" not in arguments(BASE, 30)


def test_keys_and_values_have_the_models_type_unless_another_is_asked_for() -> None:
    small = replace(BASE, engine=Engine(kv_dtype="fp8"))
    assert " --kv-dtype fp8 " in " ".join(arguments(small, 30))
    assert "--kv-dtype" not in arguments(BASE, 30)


def test_a_replica_keeps_adapters_in_fp8_only_when_it_is_to() -> None:
    small = replace(BASE, engine=Engine(adapter_dtype="fp8"))
    assert " --adapter-dtype fp8 " in " ".join(arguments(small, 30))
    assert "--adapter-dtype" not in arguments(BASE, 30)


def test_pods_are_told_where_a_model_is_that_lies_at_a_server() -> None:
    base = BaseModel(Ref("models", "tiny"), "tiny", Source("s3://bucket/tiny"))
    assert "--model-from-operator" in arguments(base, 30)
    assert "--model" not in arguments(base, 30)
    assert "bucket" not in str(arguments(base, 30))


@pytest.mark.parametrize(
    ("uri", "argument"),
    [
        ("package://weights/model.gguf", "package://weights/model.gguf"),
        ("pvc://weights/llama/8b", "/artifacts/weights/llama/8b"),
        ("file:/models/tiny", "/models/tiny"),
    ],
)
def test_the_model_argument_names_the_place_inside_the_pod(uri: str, argument: str) -> None:
    assert model_argument(uri) == argument
