"""AdmissionReview (admission.k8s.io/v1): what the API server asks, and what it is answered."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import jsonpatch

from controlplane.injector.inject import Outcome, Rules, inject
from controlplane.injector.template import Template
from engine.errors import InvalidInputError

VERSION: Final = "admission.k8s.io/v1"
# The API server cuts warnings off that are longer than this.
_MAX_WARNING: Final = 250
_MAX_WARNINGS: Final = 8


def answer(body: bytes, template: Template, rules: Rules) -> tuple[bytes, Outcome]:
    """The answer to a review, encoded, and what was decided. Raises InvalidInputError for what is no review of a pod."""
    review = _read(body)
    request = review["request"]
    pod = request["object"]
    outcome = inject(pod, _namespace(request), template, rules)
    response: dict[str, Any] = {"uid": request["uid"], "allowed": not outcome.refused}
    if outcome.refused:
        response["status"] = {"code": 400, "reason": "BadRequest", "message": f"Sidestep: {outcome.refused}"}
    if outcome.warnings:
        response["warnings"] = [warning[:_MAX_WARNING] for warning in outcome.warnings[:_MAX_WARNINGS]]
    if outcome.pod is not None:
        patch = json.dumps(jsonpatch.make_patch(pod, outcome.pod).patch)
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch.encode()).decode()}
    encoded = json.dumps({"apiVersion": VERSION, "kind": "AdmissionReview", "response": response})
    return encoded.encode(), outcome


def _read(body: bytes) -> dict[str, Any]:
    try:
        review = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidInputError("body", "is not JSON") from None
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise InvalidInputError("kind", "must be AdmissionReview")
    if review.get("apiVersion") != VERSION:
        raise InvalidInputError("apiVersion", f"must be {VERSION}")
    request = review.get("request")
    if not isinstance(request, dict):
        raise InvalidInputError("request", "is not there")
    if not isinstance(request.get("uid"), str) or not request["uid"]:
        raise InvalidInputError("request.uid", "is not there")
    kind = request.get("kind")
    if not isinstance(kind, dict) or (kind.get("group"), kind.get("version"), kind.get("kind")) != ("", "v1", "Pod"):
        raise InvalidInputError("request.kind", "must be a Pod of v1")
    if request.get("operation") != "CREATE":
        raise InvalidInputError("request.operation", "must be CREATE")
    if not isinstance(request.get("object"), dict):
        raise InvalidInputError("request.object", "is not there")
    return review


def _namespace(request: dict[str, Any]) -> str:
    """Of the request: a pod that is being created need not name its own."""
    namespace = request.get("namespace")
    if not isinstance(namespace, str) or not namespace:
        raise InvalidInputError("request.namespace", "is not there")
    return namespace
