"""What Kubernetes' servers take of the few kinds that are written here: fields, their types, and nothing else.

`RAY_SERVICE` and `RAY_JOB` (KubeRay's ray.io/v1) and `HTTP_ROUTE` (the Gateway API's gateway.networking.k8s.io/v1) are
JSON schemas of those fields that our files use, with the limits that their documentation states. Pods, whose fields are
many, are checked against the models of Kubernetes' own client.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kubernetes.client import models

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
DNS_LABEL: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
DNS_NAME: Schema = {
    "type": "string",
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "maxLength": 253,
}


def closed(required: str, **fields: Schema) -> Schema:
    """An object of these fields alone, of which the named ones must be there."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def several(of: Schema, most: int, least: int = 1) -> Schema:
    return {"type": "array", "items": of, "minItems": least, "maxItems": most}


def kind(version: str, name: str, spec: Schema) -> Schema:
    metadata = closed("name", name=DNS_NAME, namespace=DNS_LABEL, labels={"type": "object"})
    return closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": name},
        metadata=metadata,
        spec=spec,
    )


_POD: Schema = {"type": "object"}  # see `wrong_pod`
_START: Schema = {"type": "object", "additionalProperties": TEXT}
_WORKERS = closed(
    "groupName template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=_START,
    template=_POD,
)
_CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    headGroupSpec=closed("template", rayStartParams=_START, template=_POD),
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
RAY_SERVICE = kind("ray.io/v1", "RayService", closed("", serveConfigV2=TEXT, rayClusterConfig=_CLUSTER))
RAY_JOB = kind(
    "ray.io/v1",
    "RayJob",
    closed(
        "",
        entrypoint=TEXT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        rayClusterSpec=_CLUSTER,
    ),
)

_HEADER: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$", "minLength": 1, "maxLength": 256}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_SET = closed("name value", name=_HEADER, value={"type": "string", "minLength": 1, "maxLength": 4096})
_BACKEND = closed(
    "name",
    name=DNS_NAME,
    port=_PORT,
    weight={"type": "integer", "minimum": 0, "maximum": 1_000_000},
    filters=several(
        closed(
            "type requestHeaderModifier",
            type={"const": "RequestHeaderModifier"},
            requestHeaderModifier=closed("", set=several(_SET, 16, 0)),
        ),
        16,
        0,
    ),
)
_MATCH = closed(
    "",
    path=closed("", type={"enum": ["Exact", "PathPrefix"]}, value={"type": "string", "maxLength": 1024}),
    headers=several(
        closed(
            "name value",
            type={"enum": ["Exact", "RegularExpression"]},
            name=_HEADER,
            value={"type": "string", "minLength": 1, "maxLength": 4096},
        ),
        16,
    ),
)
_HOST = {"type": "string", "minLength": 1, "maxLength": 253, "pattern": r"^(\*\.)?" + DNS_NAME["pattern"][1:]}
HTTP_ROUTE = kind(
    "gateway.networking.k8s.io/v1",
    "HTTPRoute",
    closed(
        "",
        parentRefs=several(closed("name", name=DNS_NAME), 32),
        hostnames=several(_HOST, 16),
        rules=several(closed("", matches=several(_MATCH, 64), backendRefs=several(_BACKEND, 16)), 16),
    ),
)


def wrong_pod(template: Any) -> list[str]:
    """The fields of a pod's template that Kubernetes does not know, or wants otherwise."""
    return list(_wrong(template, "V1PodTemplateSpec", "template"))


def _wrong(given: Any, wanted: str, where: str) -> Iterator[str]:
    if many := re.fullmatch(r"List\[(.+)\]", wanted):
        if not isinstance(given, list):
            yield f"{where} is no list"
            return
        for number, item in enumerate(given):
            yield from _wrong(item, many.group(1), f"{where}[{number}]")
    elif each := re.fullmatch(r"Dict\[str, (.+)\]", wanted):
        for name, item in given.items():
            yield from _wrong(item, each.group(1), f"{where}.{name}")
    elif hasattr(models, wanted):
        model = getattr(models, wanted)
        types = {name: model.openapi_types[python] for python, name in model.attribute_map.items()}
        if not isinstance(given, dict):
            yield f"{where} is no object"
            return
        for name, item in given.items():
            if name not in types:
                yield f"{where} has no field {name!r}"
            else:
                yield from _wrong(item, types[name], f"{where}.{name}")
    elif not isinstance(given, {"str": str, "int": int, "bool": bool, "float": float}.get(wanted, object)):
        yield f"{where} is {given!r}, no {wanted}"
