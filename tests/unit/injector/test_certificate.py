"""The webhook's certificate, against a Kubernetes API over TLS that keeps what it is given."""

from __future__ import annotations

import base64
import datetime
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509

from controlplane.injector.certificate import ensure, holds, make
from controlplane.injector.kubernetes import ChangedError, Kubernetes, KubernetesError

NAME = "sidestep-injector.sidestep-system.svc"
SECRETS = "/api/v1/namespaces/sidestep-system/secrets"
WEBHOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/sidestep-injector"
DAY_S = 86_400


class Api:
    """Objects by path, with resource versions; `calls` is what was asked."""

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, dict] = {}
        self.calls: list[str] = []
        self.meanwhile = lambda: None
        pair = make("localhost", datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC))
        (folder / "token").write_text("a-token\n")
        (folder / "ca.crt").write_bytes(pair.authorities)
        (folder / "server.pem").write_bytes(pair.certificate + pair.key)
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                allowed = self.headers.get("Authorization") == "Bearer a-token"
                status, found = api.answer(self.command, self.path, body) if allowed else (401, {"message": "who?"})
                sent = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "server.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        self.calls.append(f"{method} {path.rsplit('/', 1)[1]}")
        if method == "POST":
            made = json.loads(body)
            path = f"{path}/{made['metadata']['name']}"
            if path in self.objects:
                return 409, {"message": "exists"}
            self.objects[path] = made
        if path not in self.objects:
            return 404, {"message": "not found"}
        kept = self.objects[path]
        if method == "PUT":
            self.meanwhile()
            new = json.loads(body)
            if new["metadata"]["resourceVersion"] != kept["metadata"]["resourceVersion"]:
                return 409, {"message": "changed"}
            kept.clear()
            kept.update(new)
        if method == "PATCH":
            for hook, change in zip(kept["webhooks"], json.loads(body)["webhooks"], strict=True):
                assert hook["name"] == change["name"]
                hook["clientConfig"].update(change["clientConfig"])
        if method != "GET":
            version = int(kept["metadata"].get("resourceVersion", 0)) + 1
            kept["metadata"]["resourceVersion"] = str(version)
        return 200, kept

    def add_webhook(self) -> None:
        hook = {"name": "pods.inject.sidestep.dev", "clientConfig": {"service": {"name": "sidestep-injector"}}}
        self.objects[WEBHOOK] = {"metadata": {"name": "sidestep-injector", "resourceVersion": "1"}, "webhooks": [hook]}

    @property
    def secret(self) -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self.objects[f"{SECRETS}/tls"]["data"].items()}

    @property
    def bundle(self) -> bytes:
        return base64.b64decode(self.objects[WEBHOOK]["webhooks"][0]["clientConfig"].get("caBundle", ""))


@pytest.fixture
def api(tmp_path):
    served = Api(tmp_path)
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def kubernetes(api, tmp_path):
    with Kubernetes(api.url, "sidestep-system", tmp_path) as connected:
        yield connected


def _ensure(kubernetes: Kubernetes, validity_s: int = 90 * DAY_S) -> str:
    return ensure(kubernetes, "tls", "sidestep-injector", NAME, validity_s)


def _handshake(secret: dict[str, bytes], bundle: bytes, folder: Path) -> None:
    """Raises ssl.SSLError if a client that trusts the bundle would not talk to a server with this certificate."""
    (folder / "pair.pem").write_bytes(secret["tls.crt"] + secret["tls.key"])
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(folder / "pair.pem")
    asking = ssl.create_default_context(cadata=bundle.decode())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = threading.Thread(target=_serve, args=(serving, theirs))
        server.start()
        try:
            asking.wrap_socket(ours, server_hostname=NAME).close()
        finally:
            ours.close()
            server.join()


def _serve(context: ssl.SSLContext, connection: socket.socket) -> None:
    try:
        context.wrap_socket(connection, server_side=True).close()
    except (ssl.SSLError, OSError):
        connection.close()


def test_at_first_there_is_no_webhook_and_after_the_install_it_trusts_the_certificate(api, kubernetes, tmp_path):
    assert _ensure(kubernetes) == "a new certificate; there is no webhook yet"
    assert api.objects[f"{SECRETS}/tls"]["type"] == "kubernetes.io/tls"
    made = api.secret
    api.add_webhook()
    assert _ensure(kubernetes) == "the certificate holds"
    assert api.secret == made
    _handshake(api.secret, api.bundle, tmp_path)
    other = make("elsewhere.svc", datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC))
    with pytest.raises(ssl.SSLError):
        _handshake(api.secret, other.authorities, tmp_path)


def test_a_replacement_is_trusted_before_it_is_used_and_the_old_one_until_it_is_gone(api, kubernetes, tmp_path):
    api.add_webhook()
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=61)
    old = make(NAME, datetime.timedelta(days=90), past)
    kubernetes.put_secret("tls", {"tls.crt": old.certificate, "tls.key": old.key, "ca.crt": old.authorities}, None)
    assert not holds(old, NAME, datetime.datetime.now(datetime.UTC))
    api.calls.clear()
    assert _ensure(kubernetes) == "a new certificate"
    assert api.calls == ["GET tls", "GET sidestep-injector", "PATCH sidestep-injector", "PUT tls"]
    _handshake(api.secret, api.bundle, tmp_path)
    _handshake({"tls.crt": old.certificate, "tls.key": old.key}, api.bundle, tmp_path)
    assert len(x509.load_pem_x509_certificates(api.bundle)) == 2
    assert _ensure(kubernetes) == "the certificate holds"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data | {"tls.crt": b"nonsense"},
        lambda data: {key: value for key, value in data.items() if key != "ca.crt"},
        lambda data: data | {"tls.key": make(NAME, datetime.timedelta(days=1), _now()).key},
        lambda data: data | {"ca.crt": make(NAME, datetime.timedelta(days=1), _now()).authorities},
        lambda data: data | make("other.svc", datetime.timedelta(days=90), _now())._asdict(),
    ],
)
def test_what_cannot_be_used_is_replaced(api, kubernetes, tmp_path, spoil):
    api.add_webhook()
    _ensure(kubernetes)
    spoilt = spoil(api.secret)
    if "certificate" in spoilt:
        spoilt = {"tls.crt": spoilt["certificate"], "tls.key": spoilt["key"], "ca.crt": spoilt["authorities"]}
    kubernetes.put_secret("tls", spoilt, kubernetes.secret("tls"))
    assert _ensure(kubernetes) == "a new certificate"
    _handshake(api.secret, api.bundle, tmp_path)


def test_of_two_that_replace_it_at_once_both_end_with_the_same_certificate(api, kubernetes, tmp_path):
    api.add_webhook()
    _ensure(kubernetes, validity_s=3600)
    kubernetes.put_secret("tls", api.secret | {"tls.crt": b"due"}, kubernetes.secret("tls"))
    other = make(NAME, datetime.timedelta(days=90), _now())

    def faster() -> None:
        api.meanwhile = lambda: None
        kept = api.objects[f"{SECRETS}/tls"]
        data = {"tls.crt": other.certificate, "tls.key": other.key, "ca.crt": other.authorities}
        kept["data"] = {key: base64.b64encode(value).decode() for key, value in data.items()}
        kept["metadata"]["resourceVersion"] = "99"

    api.meanwhile = faster
    assert _ensure(kubernetes) == "the certificate holds"
    assert api.secret["tls.crt"] == other.certificate
    _handshake(api.secret, api.bundle, tmp_path)


def test_a_secret_made_meanwhile_is_not_overwritten(api, kubernetes):
    kubernetes.put_secret("tls", {"tls.crt": b"1", "tls.key": b"2"}, None)
    with pytest.raises(ChangedError):
        kubernetes.put_secret("tls", {"tls.crt": b"3", "tls.key": b"4"}, None)
    assert api.secret["tls.crt"] == b"1"


def test_refusals_and_absence_are_told(api, tmp_path):
    (tmp_path / "token").write_text("stale")
    with (
        Kubernetes(api.url, "sidestep-system", tmp_path) as connected,
        pytest.raises(KubernetesError, match="401 who"),
    ):
        _ensure(connected)
    with (
        Kubernetes("https://localhost:1", "sidestep-system", tmp_path) as connected,
        pytest.raises(KubernetesError, match=r"GET .*/secrets/tls"),
    ):
        _ensure(connected)
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(KubernetesError, match="service account in"):
        Kubernetes(api.url, "sidestep-system", tmp_path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
