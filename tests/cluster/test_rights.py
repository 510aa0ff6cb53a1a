"""Every right that the chart grants was used by the tests before this one, and nothing was asked without a right.

Read from the API server's audit log, so that this file looks at the whole tier and runs after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import RIGHTS, Cluster, eventually

pytestmark = pytest.mark.slow

Right = tuple[str, str, str, str]  # account, API group, resource with its subresource, verb
ACCOUNTS = ("lorafleet-operator", "lorafleet-gateway")
TIER = (
    "test_operator.py", "test_trouble.py", "test_gateway.py", "test_webhook.py", "test_bad_input.py", "test_pools.py",
)  # fmt: skip
BLOCKING_OWNER: Right = ("lorafleet-operator", "lorafleet.dev", "basemodels/finalizers", "update")
"""Asked by an admission plugin about whoever writes an owner reference that blocks its owner's deletion: see below."""


def granted(cluster: Cluster) -> dict[Right, str]:
    """What the chart's roles allow our accounts, and the role that does."""
    objects = cluster.chart(*(f"--set={value}" for value in RIGHTS))
    roles = {(o["kind"], o["metadata"]["name"]): o["rules"] for o in objects if o["kind"] in ("Role", "ClusterRole")}
    found: dict[Right, str] = {}
    for binding in (o for o in objects if o["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        name = binding["roleRef"]["name"]
        for rule in roles[binding["roleRef"]["kind"], name]:
            found |= {
                (subject["name"], group, resource, verb): name
                for subject in binding["subjects"] for group in rule["apiGroups"]
                for resource in rule["resources"] for verb in rule["verbs"]
            }  # fmt: skip
    return found


def asked(cluster: Cluster) -> tuple[set[Right], list[str]]:
    """What our accounts did, and what they had no right to do."""
    used: set[Right] = set()
    forbidden: list[str] = []
    for event in cluster.audit():
        account = event["user"]["username"].rpartition(":")[2]
        about, code = event.get("objectRef"), event.get("responseStatus", {}).get("code", 0)
        if code == 403 and "NamespaceTerminating" not in _causes(event):
            forbidden.append(f"{account}: {event['verb']} {event['requestURI']}")
        if about is None:
            continue
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        used.add((account, about.get("apiGroup", ""), resource, event["verb"]))
        if event["verb"] == "patch" and code == 201:  # server-side apply of what was not there needs both
            used.add((account, about.get("apiGroup", ""), resource, "create"))
    return used, forbidden


def _causes(event: dict[str, Any]) -> list[str]:
    """What a refusal names as its causes: nobody may make anything in a namespace that goes, whatever their rights."""
    return [cause["reason"] for cause in event["responseStatus"].get("details", {}).get("causes", ())]


def test_every_right_was_used_and_none_was_missing(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    ran = {Path(item.path).name for item in request.session.items}
    if not ran.issuperset(TIER) or request.config.getoption("keyword") or request.session.testsfailed:
        pytest.skip(f"looks at the calls of a whole, passing run of {', '.join(TIER)}")
    rights = granted(cluster)
    used, forbidden = asked(cluster)

    assert {account for account, *_ in rights} == set(ACCOUNTS)
    assert sorted(set(forbidden)) == []
    unused = set(rights) - used - {BLOCKING_OWNER}
    assert {right: rights[right] for right in sorted(unused)} == {}, "take the right away, or test what needs it"


def test_without_the_right_to_block_an_owners_deletion_no_workload_could_be_made(cluster: Cluster) -> None:
    rules: list[dict[str, Any]] = [
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create", "patch"]}
    ]  # fmt: skip
    owner = {"apiVersion": "lorafleet.dev/v1alpha1", "kind": "BaseModel", "name": "x", "uid": "x", "controller": True,
             "blockOwnerDeletion": True}  # fmt: skip
    labels = {"app": "x"}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "x", "namespace": "default", "ownerReferences": [owner]},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": "x:1"}]}}},
    }  # fmt: skip

    def allow(*more: dict[str, Any]) -> None:
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "maker"}}
        cluster.apply({**role, "rules": [*rules, *more]})

    def made() -> tuple[int, str]:
        headers = {"Impersonate-User": "maker"}
        where = "/apis/apps/v1/namespaces/default/deployments"
        answer = cluster.api.post(where, params={"dryRun": "All"}, json=deployment, headers=headers)
        return answer.status_code, str(answer.json().get("message", ""))

    subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "maker"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maker"}
    cluster.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                   "metadata": {"name": "maker"}, "roleRef": role, "subjects": [subject]})  # fmt: skip
    try:
        allow()
        eventually("only the owner stands in the way", lambda: "blockOwnerDeletion" in made()[1], 30)
        assert made()[0] == 403
        _, group, resource, verb = BLOCKING_OWNER
        allow({"apiGroups": [group], "resources": [resource], "verbs": [verb]})
        eventually("it may be made", lambda: made()[0] == 201, 30)
    finally:
        cluster.kubectl("delete", "clusterrole,clusterrolebinding", "maker")
