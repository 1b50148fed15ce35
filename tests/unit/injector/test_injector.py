"""The injector as the API server uses it: a running server over TLS, whole reviews, patches applied and the results validated."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import json
import ssl
import statistics
import time
from pathlib import Path

import httpx
import jsonpatch
import kubernetes_validate
import pytest
import yaml

from controlplane.injector.app import MAX_REVIEW_BYTES, Options, injector
from controlplane.injector.certificate import make
from controlplane.injector.inject import Rules
from controlplane.injector.template import TemplateError, read_template
from engine.watched import WatchedFiles
from tests.chart.scenarios import objects, values

CASES = {case["case"]: case for case in yaml.safe_load(Path(__file__).with_name("pods.yaml").read_text())}
VERSIONS = ("1.29", "1.33", "1.37")
RULES = Rules(frozenset({"kube-system"}))


def _pod(case: dict) -> dict:
    metadata = {"name": "app", "namespace": case.get("namespace", "payments"), "labels": {"app": "app"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | case.get("metadata", {}), "spec": case["spec"]}


def _review(pod: dict, namespace: str = "payments") -> dict:
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    # fmt: off
    request = {
        "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816", "kind": kind, "resource": resource, "requestKind": kind,
        "requestResource": resource, "name": "app", "namespace": namespace, "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "uid": "u",
                     "groups": ["system:serviceaccounts", "system:authenticated"]},
        "object": pod, "oldObject": None, "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    # fmt: on
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}


def _template(scenario: str) -> str:
    for thing in objects(values(scenario)):
        if "template.yaml" in thing.get("data", ()):
            return thing["data"]["template.yaml"]
    raise AssertionError(scenario)


class Running:
    """An injector, and a client that trusts it and nobody else."""

    def __init__(self, folder: Path, scenario: str = "minimal", rules: Rules = RULES) -> None:
        self.folder = folder
        self.rules = rules
        self.template = folder / "template.yaml"
        self.template.write_text(_template(scenario))
        self.renew()

    def renew(self) -> ssl.SSLContext:
        pair = make("localhost", datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC))
        # As Kubernetes replaces them: both are there before either is.
        for name, content in (("tls.key", pair.key), ("tls.crt", pair.certificate)):
            (self.folder / f"{name}.new").write_bytes(content)
            (self.folder / f"{name}.new").rename(self.folder / name)
        self.trust = ssl.create_default_context(cadata=pair.authorities.decode())
        return self.trust

    @contextlib.asynccontextmanager
    async def serving(self):
        paths = [str(self.folder / name) for name in ("tls.crt", "tls.key", "template.yaml")]
        options = Options("127.0.0.1:0", "127.0.0.1:0", *paths, self.rules)
        async with injector(options) as (webhook, health):
            self.url = f"https://localhost:{webhook.rpartition(':')[2]}/inject"
            self.health = f"http://{health}"
            async with httpx.AsyncClient(verify=self.trust, trust_env=False, timeout=30) as client:
                yield client

    async def ask(self, client: httpx.AsyncClient, pod: dict, namespace: str = "payments") -> dict:
        response = await client.post(self.url, json=_review(pod, namespace))
        assert response.status_code == 200, response.text
        answer = response.json()
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        assert answer["response"]["uid"] == "0df28fbd-5f5f-11e8-bc74-36e6bb280816"
        return answer["response"]


def _apply(pod: dict, response: dict) -> dict:
    assert response["patchType"] == "JSONPatch"
    return jsonpatch.apply_patch(pod, json.loads(base64.b64decode(response["patch"])))


def _variables(container: dict) -> dict:
    return {variable["name"]: variable.get("value") for variable in container.get("env") or ()}


def test_there_are_enough_cases():
    assert len(CASES) >= 25


@pytest.mark.parametrize("name", CASES)
def test_a_pod_becomes_what_it_shall(name, tmp_path):
    case = CASES[name]
    running = Running(tmp_path, rules=Rules(RULES.excluded_namespaces, skip_jobs=case.get("skipJobs", False)))
    pod, namespace = _pod(case), case.get("namespace", "payments")

    async def asked() -> tuple[dict, dict | None]:
        async with running.serving() as client:
            response = await running.ask(client, pod, namespace)
            again = None
            if "patch" in response:
                again = await running.ask(client, _apply(pod, response), namespace)
            return response, again

    response, again = asyncio.run(asked())
    warnings = response.get("warnings", [])
    assert len(warnings) == len(case.get("warns", ()))
    assert all(part in warning for part, warning in zip(case.get("warns", ()), warnings, strict=True))
    result = case.get("result", "injected")
    assert response["allowed"] is (result != "refused")
    if result == "refused":
        assert case["says"] in response["status"]["message"]
    if result != "injected":
        assert "patch" not in response
        return
    changed = _apply(pod, response)
    for version in VERSIONS:
        kubernetes_validate.validate(changed, version, strict=True)
    assert again is not None
    assert "patch" not in again, "the second time there is nothing to do"
    sidecar, *others = changed["spec"]["initContainers"]
    assert sidecar["name"] == "sidestep"
    assert sidecar["restartPolicy"] == "Always"
    assert [container["name"] for container in others] == [
        container["name"] for container in pod["spec"].get("initContainers") or ()
    ]
    assert changed["metadata"]["labels"]["sidestep.dev/injected"] == "true"
    assert 65532 in changed["spec"]["securityContext"]["supplementalGroups"]
    mounts = {
        mount["name"] for container in (sidecar, *changed["spec"]["containers"]) for mount in container["volumeMounts"]
    }
    assert mounts <= {volume["name"] for volume in changed["spec"]["volumes"]}
    for container in (*others, *changed["spec"]["containers"]):
        assert "SIDESTEP_ADDRESS" in _variables(container)
    # What was there before is there still.
    for kind in ("containers", "volumes"):
        kept = {thing["name"]: thing for thing in changed["spec"][kind]}
        for thing in pod["spec"].get(kind) or ():
            assert {key: value for key, value in thing.items() if key not in ("env", "volumeMounts")}.items() <= (
                kept[thing["name"]].items()
            )
            assert _variables(thing).items() <= _variables(kept[thing["name"]]).items()


def test_annotations_override_what_holds_for_all(tmp_path):
    running = Running(tmp_path)

    async def asked() -> list[dict]:
        async with running.serving() as client:
            pods = [_pod(CASES[name]) for name in ("overrides", "a caller's token", "its own security context")]
            return [_apply(pod, await running.ask(client, pod)) for pod in pods]

    overridden, with_token, secured = asyncio.run(asked())
    sidecar = overridden["spec"]["initContainers"][0]
    assert sidecar["image"] == "registry.example.org/sidestep-sidecar:0.1.1"
    assert _variables(sidecar)["SIDESTEP_TENANT"] == "globex"
    assert _variables(sidecar)["SIDESTEP_WORKERS"] == "4"
    names = [variable["name"] for variable in sidecar["env"]]
    assert len(names) == len(set(names))
    assert sidecar["resources"] == {
        "requests": {"cpu": "1", "memory": "512Mi"},
        "limits": {"cpu": "2", "memory": "1Gi"},
    }
    (app,) = with_token["spec"]["containers"]
    assert _variables(app)["SIDESTEP_TOKEN_FILE"] == "/etc/sidestep/caller/token"
    assert {"name": "sidestep-token", "mountPath": "/etc/sidestep/caller", "readOnly": True} in app["volumeMounts"]
    assert secured["spec"]["securityContext"] == {
        "runAsUser": 1000,
        "runAsNonRoot": True,
        "supplementalGroups": [2000, 65532],
    }


@pytest.mark.parametrize("scenario", ["production", "spiffe", "mtls-cert-manager"])
def test_templates_of_other_scenarios_give_valid_pods(scenario, tmp_path):
    running = Running(tmp_path, scenario)

    async def asked() -> dict:
        async with running.serving() as client:
            return await running.ask(client, _pod(CASES["plain"]))

    changed = _apply(_pod(CASES["plain"]), asyncio.run(asked()))
    for version in VERSIONS:
        kubernetes_validate.validate(changed, version, strict=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda review: b"{", "body: is not JSON"),
        (lambda review: b"[" * 100_000, "body: is not JSON"),
        (lambda review: b"[]", "kind"),
        (lambda review: review | {"apiVersion": "admission.k8s.io/v1beta1"}, "apiVersion"),
        (lambda review: review | {"request": None}, "request: is not there"),
        (lambda review: review | {"request": review["request"] | {"uid": ""}}, "request.uid"),
        (lambda review: review | {"request": review["request"] | {"object": None}}, "request.object"),
        (lambda review: review | {"request": review["request"] | {"operation": "UPDATE"}}, "request.operation"),
        (lambda review: review | {"request": review["request"] | {"namespace": None}}, "request.namespace"),
        (
            lambda review: review | {"request": review["request"] | {"kind": {"group": "apps", "version": "v1", "kind": "Job"}}},
            "request.kind",
        ),
        (lambda review: _with_pod(review, {"metadata": {}}), "object.spec"),
        (lambda review: _with_pod(review, {"spec": {"containers": []}}), "object.spec.containers"),
        (lambda review: _with_pod(review, {"spec": {"containers": ["app"]}}), "object.spec.containers"),
        (lambda review: _with_pod(review, {"spec": {"containers": [{}], "volumes": {"a": 1}}}), "object.spec.volumes"),
        (lambda review: _with_pod(review, {"metadata": [], "spec": {"containers": [{}]}}), "object.metadata"),
        (
            lambda review: _with_pod(review, {"metadata": {"labels": {"a": 1}}, "spec": {"containers": [{}]}}),
            "object.metadata.labels",
        ),
    ],
)  # fmt: skip
def test_what_is_no_review_is_refused_by_name_and_the_server_goes_on(spoil, said, tmp_path):
    running = Running(tmp_path)

    async def asked() -> tuple[httpx.Response, dict]:
        async with running.serving() as client:
            spoilt = spoil(_review(_pod(CASES["plain"])))
            body = spoilt if isinstance(spoilt, bytes) else json.dumps(spoilt).encode()
            response = await client.post(running.url, content=body)
            return response, await running.ask(client, _pod(CASES["plain"]))

    response, after = asyncio.run(asked())
    assert response.status_code == 400
    assert response.text.startswith(said)
    assert "patch" in after


def _with_pod(review: dict, pod: dict) -> dict:
    return review | {"request": review["request"] | {"object": pod}}


def test_other_paths_methods_and_sizes_are_refused_and_all_is_counted(tmp_path):
    running = Running(tmp_path)

    async def asked() -> None:
        async with running.serving() as client:
            assert (await client.get(running.url)).status_code == 405
            assert (await client.post(running.url.replace("inject", "elsewhere"))).status_code == 404
            assert (await client.post(running.url, content=b"x" * (MAX_REVIEW_BYTES + 1))).status_code == 413
            for name in ("plain", "host network", "too many workers"):
                await running.ask(client, _pod(CASES[name]))
            for path in ("/healthz", "/readyz"):
                assert (await client.get(running.health + path)).json() == {"ok": True}
            metrics = (await client.get(f"{running.health}/metrics")).text
            for result in ("injected", "left_alone", "refused", "malformed"):
                assert f'sidestep_injector_reviews_total{{result="{result}"}} 1\n' in metrics
            assert "sidestep_injector_unusable 0\n" in metrics

    asyncio.run(asked())


def test_plain_text_and_strangers_authorities_get_nowhere(tmp_path):
    running = Running(tmp_path)

    async def asked() -> None:
        async with running.serving() as client:
            async with httpx.AsyncClient(trust_env=False) as plain:
                with pytest.raises(httpx.HTTPError):
                    await plain.post(running.url.replace("https", "http"), json={})
            with pytest.raises(httpx.ConnectError):
                async with httpx.AsyncClient(trust_env=False, verify=ssl.create_default_context()) as stranger:
                    await stranger.post(running.url, json={})
            await running.ask(client, _pod(CASES["plain"]))

    asyncio.run(asked())


def test_template_and_certificate_are_read_again_and_what_cannot_be_used_changes_nothing(tmp_path):
    running = Running(tmp_path)

    async def image(trust: ssl.SSLContext) -> str:
        # A connection of its own: the certificate is shown when one begins.
        async with httpx.AsyncClient(verify=trust, trust_env=False, timeout=30) as client:
            response = await running.ask(client, _pod(CASES["plain"]))
            return _apply(_pod(CASES["plain"]), response)["spec"]["initContainers"][0]["image"]

    async def until(condition) -> None:
        async with asyncio.timeout(30):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def asked() -> None:
        async with running.serving() as client:
            old = running.trust
            assert await image(old) == "sidestep-sidecar:0.1.0"

            async def unusable(value: int) -> bool:
                text = (await client.get(f"{running.health}/metrics")).text
                return f"sidestep_injector_unusable {value}\n" in text

            running.template.write_text("container: {}\n")
            await until(lambda: unusable(1))
            assert await image(old) == "sidestep-sidecar:0.1.0"
            running.template.write_text(
                _template("minimal").replace("sidestep-sidecar:0.1.0", "sidestep-sidecar:0.1.1")
            )
            await until(lambda: unusable(0))
            assert await image(old) == "sidestep-sidecar:0.1.1"
            new = running.renew()

            async def shown() -> bool:
                with contextlib.suppress(httpx.ConnectError):
                    return bool(await image(new))
                return False

            await until(shown)
            with pytest.raises(httpx.ConnectError):
                await image(old)

    asyncio.run(asked())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not YAML"),
        ("a: 1", "container: Field required"),
        ("container: {name: sidestep, image: x, restartPolicy: Never}", "restartPolicy"),
        ("container: {name: other, image: x, restartPolicy: Always}", "name"),
        ("container: {name: sidestep, restartPolicy: Always}", "image"),
        ("container: {name: sidestep, image: x, restartPolicy: Always}\nvolumes: [{}]", "volumes"),
        ("container: {name: sidestep, image: x, restartPolicy: Always}\nvolume: []", "volume"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_by_name(text, said, tmp_path):
    path = tmp_path / "template.yaml"
    path.write_text(text)
    with pytest.raises(TemplateError, match=said):
        read_template(str(path), WatchedFiles())


def test_fifty_reviews_at_once_are_all_answered(tmp_path, record_property):
    """The latency is reported, not judged: machines differ."""
    running = Running(tmp_path)
    pod = _pod(CASES["several containers"])
    taken: list[float] = []

    async def one(client: httpx.AsyncClient) -> None:
        for _ in range(10):
            began = time.perf_counter()
            assert "patch" in await running.ask(client, pod)
            taken.append(time.perf_counter() - began)

    async def asked() -> None:
        async with running.serving() as client:
            await asyncio.gather(*(one(client) for _ in range(50)))

    asyncio.run(asked())
    assert len(taken) == 500
    record_property("p99_ms", statistics.quantiles(taken, n=100)[98] * 1000)
