"""What becomes of one pod. Pure: a pod and a template in, a changed pod or a reason out.

Whoever asks twice gets the same: a pod that has its sidecar is left as it is. What the pod's author wrote wins over the template,
with a warning, unless the author asks for something that cannot be: then the pod is refused, because a sidecar that serves
another tenant than was meant is worse than a pod that does not start.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from copy import deepcopy
from typing import Any, Final, NamedTuple

from controlplane.injector.template import NAME, Template
from engine.errors import InvalidInputError
from engine.names import check_tenant

PREFIX: Final = "sidestep.dev/"
INJECT: Final = f"{PREFIX}inject"
INJECTED: Final = f"{PREFIX}injected"
"""Label of pods that have a sidecar; monitors select by it."""
_OFF: Final = frozenset({"false", "disabled"})
_QUANTITY: Final = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi)?")
_IMAGE: Final = re.compile(r"[a-z0-9][a-zA-Z0-9._/:@-]{0,510}")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_PORT: Final = 9191
_RESOURCES: Final = {
    "cpu-request": ("requests", "cpu"),
    "memory-request": ("requests", "memory"),
    "cpu-limit": ("limits", "cpu"),
    "memory-limit": ("limits", "memory"),
}
_KNOWN: Final = frozenset({"inject", "tenant", "image", "workers", "token-secret", *_RESOURCES})
_TOKEN: Final = "sidestep-token"  # noqa: S105 (a volume's name)
_TOKEN_FOLDER: Final = "/etc/sidestep/caller"  # noqa: S105


class Rules(NamedTuple):
    """Which pods are left alone, besides those that say so themselves."""

    excluded_namespaces: frozenset[str] = frozenset()
    skip_jobs: bool = False


class Outcome(NamedTuple):
    """`pod`: as it shall be; None: as it is. `refused`: why it must not be created; empty: it may."""

    pod: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    refused: str = ""


def inject(pod: dict[str, Any], namespace: str, template: Template, rules: Rules) -> Outcome:
    """Decides on a pod that is about to be created in a namespace; `pod` itself stays. Raises InvalidInputError if it is none."""
    _check_shape(pod)
    reason = _left_alone(pod, namespace, rules)
    if reason is not None:
        return Outcome(warnings=(reason,) if reason else ())
    try:
        asked = _annotations(pod)
    except InvalidInputError as error:
        return Outcome(refused=f"{error.field}: {error.problem}")
    warnings: list[str] = [f"{PREFIX}{name}: is no annotation of Sidestep" for name in sorted(set(asked) - _KNOWN)]
    changed = deepcopy(pod)
    spec, metadata = changed["spec"], changed.setdefault("metadata", {})
    volumes = [*deepcopy(template.volumes), *_token_volume(asked)]
    taken = {volume.get("name") for volume in spec.get("volumes") or ()} & {volume["name"] for volume in volumes}
    if taken:
        return Outcome(refused=f"spec.volumes: {', '.join(sorted(taken))}: the name is the sidecar's")
    # First, so that other init containers can already ask it.
    spec["initContainers"] = [_sidecar(template, asked), *(spec.get("initContainers") or ())]
    spec["volumes"] = [*(spec.get("volumes") or ()), *volumes]
    for kind in ("initContainers", "containers"):
        for container in spec[kind]:
            if container.get("name") != NAME:
                warnings += _connect(container, template, asked)
    _join_group(spec, template)
    metadata["labels"] = (metadata.get("labels") or {}) | {INJECTED: "true"}
    return Outcome(changed, tuple(warnings))


def _check_shape(pod: dict[str, Any]) -> None:
    spec = pod.get("spec")
    if not isinstance(spec, dict):
        raise InvalidInputError("object.spec", "is not there")
    for kind in ("containers", "initContainers", "volumes"):
        things = spec.get(kind) or []
        if not isinstance(things, list) or not all(isinstance(thing, dict) for thing in things):
            raise InvalidInputError(f"object.spec.{kind}", "is not a list of objects")
    if not spec.get("containers"):
        raise InvalidInputError("object.spec.containers", "is empty")
    metadata = pod.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InvalidInputError("object.metadata", "is not an object")
    for kind in ("labels", "annotations"):
        marks = metadata.get(kind) or {}
        if not isinstance(marks, dict) or not all(isinstance(value, str) for value in marks.values()):
            raise InvalidInputError(f"object.metadata.{kind}", "is not a map of strings")


def _left_alone(pod: dict[str, Any], namespace: str, rules: Rules) -> str | None:
    """Why a pod gets no sidecar, as a warning to its author, empty if there is nothing to warn of; None: it gets one."""
    spec, metadata = pod["spec"], pod.get("metadata", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if namespace in rules.excluded_namespaces or "kubernetes.io/config.mirror" in annotations:
        return ""
    if labels.get(INJECT, annotations.get(INJECT, "")).lower() in _OFF:
        return ""
    owners = metadata.get("ownerReferences") or ()
    if rules.skip_jobs and any(owner.get("kind") == "Job" for owner in owners if isinstance(owner, dict)):
        return ""
    if any(container.get("name") == NAME for container in spec.get("initContainers") or ()):
        return ""
    if any(container.get("name") == NAME for container in spec["containers"]):
        return f"Sidestep: no sidecar: a container is called {NAME!r} already"
    if spec.get("hostNetwork"):
        return "Sidestep: no sidecar: with hostNetwork every process of the node would reach it"
    if (spec.get("os") or {}).get("name") == "windows":
        return "Sidestep: no sidecar: the pod is for Windows"
    ports = [port for container in spec["containers"] for port in container.get("ports") or ()]
    if any(port.get("containerPort") == _PORT for port in ports):
        return f"Sidestep: no sidecar: a container listens on port {_PORT} already"
    return None


def _annotations(pod: dict[str, Any]) -> dict[str, str]:
    """What a pod asks for, by the names without their prefix. Raises InvalidInputError."""
    annotations = pod.get("metadata", {}).get("annotations") or {}
    asked = {name.removeprefix(PREFIX): value for name, value in annotations.items() if name.startswith(PREFIX)}
    checks = {
        "image": (_IMAGE, "is not an image"),
        "workers": (re.compile(r"[1-9]|[1-5][0-9]|6[0-4]"), "must be a number from 1 to 64"),
        "token-secret": (_NAME, "is not the name of a Secret"),
        **dict.fromkeys(_RESOURCES, (_QUANTITY, "is not a quantity (examples: 250m, 256Mi)")),
    }
    for name, value in asked.items():
        if name == "tenant":
            check_tenant(value, f"metadata.annotations[{PREFIX}tenant]")
        elif name in checks and not checks[name][0].fullmatch(value):
            raise InvalidInputError(f"metadata.annotations[{PREFIX}{name}]", f"{value!r} {checks[name][1]}")
    return asked


def _sidecar(template: Template, asked: dict[str, str]) -> dict[str, Any]:
    container = deepcopy(template.container)
    if "image" in asked:
        container["image"] = asked["image"]
    settings = {"SIDESTEP_TENANT": asked.get("tenant"), "SIDESTEP_WORKERS": asked.get("workers")}
    for name, value in settings.items():
        if value is not None:
            others = [variable for variable in container.get("env") or () if variable.get("name") != name]
            container["env"] = [*others, {"name": name, "value": value}]
    for name, (kind, resource) in _RESOURCES.items():
        if name in asked:
            container.setdefault("resources", {}).setdefault(kind, {})[resource] = asked[name]
    return container


def _token_volume(asked: dict[str, str]) -> list[dict[str, Any]]:
    if "token-secret" not in asked:
        return []
    return [{"name": _TOKEN, "secret": {"secretName": asked["token-secret"], "defaultMode": 0o440}}]


def _connect(container: dict[str, Any], template: Template, asked: dict[str, str]) -> list[str]:
    """Lets a container of the app find the sidecar; returns what it could not do."""
    env, mounts = deepcopy(template.app.env), deepcopy(template.app.volumeMounts)
    if "token-secret" in asked:
        env.append({"name": "SIDESTEP_TOKEN_FILE", "value": f"{_TOKEN_FOLDER}/token"})
        mounts.append({"name": _TOKEN, "mountPath": _TOKEN_FOLDER, "readOnly": True})
    warnings = []
    own = container.get("env") or []
    names = {variable.get("name") for variable in own}
    for variable in [variable for variable in env if variable["name"] in names]:
        env.remove(variable)
        warnings.append(f"Sidestep: container {container.get('name')!r} keeps its own {variable['name']}")
    paths = {mount.get("mountPath") for mount in container.get("volumeMounts") or ()}
    for mount in [mount for mount in mounts if mount["mountPath"] in paths]:
        mounts.remove(mount)
        warnings.append(f"Sidestep: container {container.get('name')!r} mounts something else at {mount['mountPath']}")
    if env:
        container["env"] = [*env, *own]
    if mounts:
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), *mounts]
    return warnings


def _join_group(spec: dict[str, Any], template: Template) -> None:
    if template.supplementalGroup is None:
        return
    security = spec["securityContext"] = spec.get("securityContext") or {}
    groups: Collection[int] = security.get("supplementalGroups") or ()
    if template.supplementalGroup not in groups:
        security["supplementalGroups"] = [*groups, template.supplementalGroup]
