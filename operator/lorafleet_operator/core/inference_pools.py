"""BaseModel -> InferencePool of the Gateway API inference extension: its pods, for a gateway of that kind. Pure.

Our own gateway needs none. With one, an HTTPRoute may name the base model's pool as its backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorafleet_operator.core.conditions import Condition
from lorafleet_operator.core.manifests import owned, selector
from lorafleet_operator.core.objects import BaseModel
from lorafleet_operator.core.observed import Pools
from lorafleet_operator.core.runtime_arguments import SERVING_PORT

GROUP_VERSION = "inference.networking.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class EndpointPicker:
    """The Service beside a base model that picks one of its pods. `name` holds `{name}` for the base model's."""

    name: str
    port: int = 9002
    failure_mode: str = "FailClose"


def inference_pool(base: BaseModel, uid: str, picker: EndpointPicker | None) -> dict[str, Any]:
    """The pool of a base model, of its name. Without a picker, the gateway spreads requests over the pods itself."""
    spec: dict[str, Any] = {
        "selector": {"matchLabels": selector(base.ref.name)},
        "targetPorts": [{"number": SERVING_PORT}],
    }
    if picker is not None:
        spec["endpointPickerRef"] = {
            "kind": "Service", "name": picker.name.replace("{name}", base.ref.name),
            "port": {"number": picker.port}, "failureMode": picker.failure_mode,
        }  # fmt: skip
    return {**owned(GROUP_VERSION, "InferencePool", base, uid, base.ref.name), "spec": spec}


def gateway_integrated(pools: Pools) -> tuple[Condition, ...]:
    """What a base model's status says of its pool; nothing while none is asked for."""
    name = "GatewayIntegrated"
    if pools == "there":
        return (Condition(name, True, "PoolApplied", "an InferencePool of its name has its pods"),)
    if pools == "missing":
        message = "the cluster knows no InferencePool: install the Gateway API inference extension's definitions"
        return (Condition(name, False, "CRDNotInstalled", message),)
    return ()
