"""What the injector puts into pods: a YAML file that the chart writes, read again when it changes.

supplementalGroup: 65532        group that may enter the socket's folder
container: {...}                the sidecar, as a container of a pod
volumes: [...]                  what it mounts
app:                            for the app's containers
  env: [...]
  volumeMounts: [...]
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from engine.errors import SidestepError
from engine.watched import WatchedFiles

NAME: Final = "sidestep"
"""The container's name, by which an injected pod is known."""
MAX_BYTES: Final = 1 << 20


class TemplateError(SidestepError):
    """The template cannot be used; the message says why."""


def _sidecar(container: dict[str, Any]) -> dict[str, Any]:
    if container.get("name") != NAME:
        raise ValueError(f"name: must be {NAME!r}")
    if not container.get("image"):
        raise ValueError("image: missing")
    if container.get("restartPolicy") != "Always":
        raise ValueError("restartPolicy: must be 'Always', which makes it a native sidecar")
    return container


def _named(things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(not isinstance(thing.get("name"), str) for thing in things):
        raise ValueError("each must have a name")
    return things


Named = Annotated[list[dict[str, Any]], AfterValidator(_named)]


class App(BaseModel):
    """What the app's containers get."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: Named = []
    volumeMounts: Named = []  # noqa: N815 (Kubernetes' word)


class Template(BaseModel):
    """See the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    supplementalGroup: int | None = Field(default=None, ge=1, le=2**31 - 1)  # noqa: N815
    container: Annotated[dict[str, Any], AfterValidator(_sidecar)]
    volumes: Named = []
    app: App = App()


def read_template(path: str, files: WatchedFiles) -> Template:
    """Reads the file. Raises TemplateError."""
    try:
        content = files.read(path, MAX_BYTES)
    except OSError as error:
        raise TemplateError(f"{path}: {error}") from None
    if content is None:
        raise TemplateError(f"{path}: there is no such file")
    try:
        return Template.model_validate(yaml.safe_load(content.data.decode("utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        raise TemplateError(f"{path}: {'; '.join(problems)}") from None
