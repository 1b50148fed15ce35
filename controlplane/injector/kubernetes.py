"""The little of the Kubernetes API that the webhook's certificate needs, as a pod reaches it."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any, Final, Self

import httpx

from engine.errors import SidestepError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S: Final = 15.0
_WEBHOOKS: Final = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


class KubernetesError(SidestepError):
    """The API could not be reached, or refused."""


class ChangedError(KubernetesError):
    """Somebody else changed, or made, the object meanwhile."""


class Kubernetes:
    """Secrets of one namespace and webhook configurations. Every method raises KubernetesError."""

    def __init__(self, server: str, namespace: str, account: Path = ACCOUNT) -> None:
        """`server`: URL of the API. `account`: folder with the `token` and `ca.crt` of a service account."""
        self._secrets = f"/api/v1/namespaces/{namespace}/secrets"
        try:
            token = (account / "token").read_text(encoding="ascii").strip()
            trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
            raise KubernetesError(f"service account in {account}: {error}") from None
        self._client = httpx.Client(
            base_url=server,
            headers={"Authorization": f"Bearer {token}"},
            verify=trust,
            timeout=_TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def secret(self, name: str) -> dict[str, Any] | None:
        """A Secret; None: there is none."""
        return self._call("GET", f"{self._secrets}/{name}", missing=True)

    def put_secret(self, name: str, data: dict[str, bytes], old: dict[str, Any] | None) -> None:
        """Makes a Secret of type kubernetes.io/tls, or replaces what `old` was read as. Raises ChangedError if it is not that."""
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        secret: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": encoded}
        if old is None:
            self._call("POST", self._secrets, json=secret | {"metadata": {"name": name}})
        else:
            self._call("PUT", f"{self._secrets}/{name}", json=secret | {"metadata": old["metadata"]})

    def trust(self, webhook: str, bundle: bytes) -> bool:
        """Sets whom the API server trusts when it calls a MutatingWebhookConfiguration; False: there is none of this name."""
        found = self._call("GET", f"{_WEBHOOKS}/{webhook}", missing=True)
        if found is None:
            return False
        encoded = base64.b64encode(bundle).decode()
        changes = [{"name": hook["name"], "clientConfig": {"caBundle": encoded}} for hook in found.get("webhooks", ())]
        self._call(
            "PATCH",
            f"{_WEBHOOKS}/{webhook}",
            json={"webhooks": changes},
            headers={"Content-Type": "application/strategic-merge-patch+json"},
        )
        return True

    def _call(self, method: str, path: str, *, missing: bool = False, **arguments: Any) -> dict[str, Any] | None:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise KubernetesError(f"{method} {path}: {error or type(error).__name__}") from None
        if missing and response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_success:
            answer: dict[str, Any] = response.json()
            return answer
        try:
            reason = str(response.json()["message"])
        except (ValueError, KeyError, TypeError):
            reason = response.text[:200]
        kind = ChangedError if response.status_code == httpx.codes.CONFLICT else KubernetesError
        raise kind(f"{method} {path}: {response.status_code} {reason}")
