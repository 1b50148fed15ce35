"""The chart: every scenario lints, renders as it did, is valid for three versions of Kubernetes and keeps our rules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import helm_python
import kubernetes_validate
import pytest
import yaml

from engine.watched import WatchedFiles
from tests.chart.scenarios import CHART, GOLDEN, NAMESPACE, SCENARIOS, chart, merged, objects, pod_specs, render, values

ROOT = CHART.parents[1]
# The oldest that the chart admits, one in the middle, the newest there are schemas for.
VERSIONS = ("1.29", "1.33", "1.37")
CUSTOM = {"Certificate", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
ALL_ON = {
    "monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")},
    "collector": {"enabled": True, "exporters": {"otlphttp": {"endpoint": "https://traces.example.org"}}},
}


def test_there_is_a_scenario_for_each_way_to_run_it():
    assert set(SCENARIOS) >= {
        "minimal",
        "production",
        "high-availability",
        "mtls-cert-manager",
        "spiffe",
        "air-gapped",
    }


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_lints_strictly(scenario):
    result = helm_python.lint(CHART, values(scenario), strict=True, namespace=NAMESPACE)
    problems = [message for message in result["messages"] if message["severity"] > 1]
    assert not result["errors"]
    assert not problems


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_renders_as_its_golden_file_says(scenario):
    """After a change that is meant: UPDATE_GOLDEN=1 pytest tests/chart, and look at the difference."""
    text = "".join(f"# {path}\n{_neat(body)}\n" for path, body in render(values(scenario)).items())
    path = GOLDEN / f"{scenario}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_is_valid_for_kubernetes(scenario, version):
    found = objects(merged(values(scenario), ALL_ON))
    for thing in found:
        if thing["kind"] not in CUSTOM:
            kubernetes_validate.validate(thing, version, strict=True)
    assert len([thing for thing in found if thing["kind"] not in CUSTOM]) > 10


def test_the_validation_can_fail():
    deployment = next(thing for thing in objects(values("minimal")) if thing["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_pod_has_a_privilege_and_each_has_bounds_and_probes(scenario):
    found = objects(merged(values(scenario), ALL_ON))
    specs = pod_specs(found)
    (template,) = [thing for thing in found if thing["kind"] == "ConfigMap" and "template.yaml" in thing["data"]]
    injected = yaml.safe_load(template["data"]["template.yaml"])
    containers = [(where, container) for where, spec in specs.items() for container in spec["containers"]]
    for where, container in [*containers, ("injected", injected["container"])]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, where
        assert security["allowPrivilegeEscalation"] is False, where
        assert security["privileged"] is False, where
        assert security["runAsNonRoot"] is True, where
        assert security["capabilities"] == {"drop": ["ALL"]}, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
        assert "memory" in container["resources"]["limits"], where
        assert re.search(r"@sha256:[0-9a-f]{64}$|:[0-9][^:]*$", container["image"]), where
        if where.startswith("Deployment") or where == "injected":
            assert {"livenessProbe", "readinessProbe"} <= set(container), where
    for where, spec in specs.items():
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["runAsUser"] > 0, where
        assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")), where
        assert not any("hostPath" in volume for volume in spec.get("volumes", ())), where
        # Only the Job that makes the webhook's certificate talks to the Kubernetes API.
        assert ("certificate" in where) or spec["automountServiceAccountToken"] is False, where


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_sidecar_is_native_and_its_volume_holds_what_its_settings_say(scenario):
    (template,) = [
        thing
        for thing in objects(values(scenario))
        if thing["kind"] == "ConfigMap" and "template.yaml" in thing["data"]
    ]
    injected = yaml.safe_load(template["data"]["template.yaml"])
    container = injected["container"]
    sidecar = merged(chart().values["sidecar"], values(scenario)["sidecar"])
    assert container["restartPolicy"] == "Always"
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert "cpu" not in container["resources"]["limits"]
    assert sidecar["storeMax"] == "1GiB"
    assert sidecar["journalMax"] == "256MiB"
    (data,) = [volume for volume in injected["volumes"] if volume["name"] == "sidestep-data"]
    assert data["emptyDir"]["sizeLimit"] == f"{3 * 1024 + 256 + 128}Mi"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in injected["volumes"]}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"controlplane": {"replica": 3}}, "replica"),
        ({"controlplane": {"replicas": 0}}, "/controlplane/replicas"),
        ({"controlplane": {"replicas": "three"}}, "/controlplane/replicas"),
        ({"controlplane": {"database": {"kind": "mysql"}}}, "/controlplane/database/kind"),
        ({"controlplane": {"settings": {"SIDESTEP_TENANT": "acme"}}}, "'SIDESTEP_TENANT'"),
        ({"controlplane": {"resources": {"limit": {}}}}, "/controlplane/resources"),
        ({"sidecar": {"settings": {"SIDESTEP_CP_LISTEN": "x"}}}, "'SIDESTEP_CP_LISTEN'"),
        ({"sidecar": {"tenant": "ACME"}}, "/sidecar/tenant"),
        ({"sidecar": {"workers": 65}}, "/sidecar/workers"),
        ({"sidecar": {"journalMax": "lots"}}, "/sidecar/journalMax"),
        ({"images": {"sidecar": {"tag": "latest"}}}, "/images/sidecar/tag"),
        ({"images": {"sidecar": {"digest": "sha1:1"}}}, "/images/sidecar/digest"),
        ({"injector": {"failurePolicy": "Sometimes"}}, "/injector/failurePolicy"),
        ({"injector": {"timeoutSeconds": 31}}, "/injector/timeoutSeconds"),
        ({"telemetry": {"protocol": "http/json"}}, "/telemetry/protocol"),
    ],
)
def test_a_bad_value_is_refused_by_the_schema_with_its_path(changes, where):
    with pytest.raises(helm_python.HelmValuesError, match=re.escape(where)):
        chart().validate_schema(merged(values("minimal"), changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"controlplane": {"replicas": 2}}, "SQLite serves one replica"),
        ({"controlplane": {"database": {"kind": "postgresql"}}}, "postgresql.secretName: needed"),
        ({"controlplane": {"insecure": False}}, "controlplane.tls.mode: none"),
        ({"controlplane": {"insecure": False, "tls": {"mode": "spiffe"}}}, "controlplane.sidecars: says which"),
        (
            {
                "controlplane": {
                    "insecure": False,
                    "tls": {"mode": "spiffe"},
                    "sidecars": [{"match": "dns:x", "tenants": "*"}],
                }
            },
            "controlplane.operators.secretName: says who",
        ),
        ({"controlplane": {"tls": {"mode": "secret"}}}, "controlplane.tls.secretName: needed"),
        ({"controlplane": {"tls": {"mode": "certManager"}}}, "controlplane.tls.issuer.name: needed"),
        ({"sidecar": {"tls": {"insecure": False}}}, "sidecar.tls.mode: none"),
        ({"sidecar": {"tenant": ""}}, "sidecar.tenant: needed"),
        ({"injector": {"certificate": {"mode": "secret"}}}, "injector.certificate.secretName: needed"),
        ({"collector": {"enabled": True}}, "collector.exporters.otlphttp.endpoint"),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes, said):
    with pytest.raises(helm_python.HelmError, match=re.escape(said)):
        render(merged(values("minimal"), changes))


def test_without_being_told_otherwise_nothing_is_plain_text():
    with pytest.raises(helm_python.HelmError, match="tls"):
        render({"sidecar": {"tenant": "acme"}})


def test_every_value_is_described_and_no_other_is_taken():
    schema = json.loads((CHART / "values.schema.json").read_text())
    undescribed: list[str] = []
    open_: list[str] = []

    def visit(path: str, node: dict, value: object) -> None:
        if path and not node.get("description"):
            undescribed.append(path)
        if isinstance(value, dict) and value and "properties" in node:
            if node.get("additionalProperties") is not False:
                open_.append(path)
            if not path.endswith("resources"):
                assert set(value) <= set(node["properties"]), path
            for name, part in value.items():
                if name in node["properties"]:
                    visit(f"{path}.{name}".lstrip("."), node["properties"][name], part)

    visit("", schema, yaml.safe_load((CHART / "values.yaml").read_text()))
    assert undescribed == []
    assert open_ == []


def test_its_readme_lists_the_values_as_they_are():
    command = [sys.executable, str(ROOT / "scripts" / "chart_readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("packed", "kept"),
    [
        ("alerts.yaml", "prometheus/alerts.yaml"),
        ("recording.yaml", "prometheus/recording.yaml"),
        ("dashboard.json", "grafana/sidestep.json"),
    ],
)
def test_what_it_packs_for_monitoring_is_what_the_project_keeps(packed, kept):
    assert (CHART / "files" / packed).read_bytes() == (ROOT / "observability" / kept).read_bytes()


def test_alerts_and_dashboard_arrive_whole():
    found = objects(merged(values("minimal"), ALL_ON))
    (rule,) = [thing for thing in found if thing["kind"] == "PrometheusRule"]
    kept = [
        group
        for name in ("recording", "alerts")
        for group in yaml.safe_load((ROOT / "observability" / "prometheus" / f"{name}.yaml").read_text())["groups"]
    ]
    assert rule["spec"]["groups"] == kept
    (dashboard,) = [thing for thing in found if "sidestep.json" in thing.get("data", ())]
    assert json.loads(dashboard["data"]["sidestep.json"]) == json.loads(
        (ROOT / "observability" / "grafana" / "sidestep.json").read_text()
    )


def test_the_settings_it_writes_are_settings_there_are():
    """A name that program or operator mistypes is refused by the program when it starts: too late for a chart."""
    from controlplane.config import PREFIX, Settings
    from sidecar.config import SETTINGS

    for scenario in SCENARIOS:
        found = objects(values(scenario))
        (template,) = [thing for thing in found if thing["kind"] == "ConfigMap" and "template.yaml" in thing["data"]]
        names = {variable["name"] for variable in yaml.safe_load(template["data"]["template.yaml"])["container"]["env"]}
        assert {name for name in names if name.startswith("SIDESTEP_")} <= set(SETTINGS), scenario
        known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
        (config,) = [thing for thing in found if thing["kind"] == "ConfigMap" and "SIDESTEP_CP_LISTEN" in thing["data"]]
        written = set(config["data"])
        (spec,) = [spec for where, spec in pod_specs(found).items() if where == "Deployment sidestep-controlplane"]
        written |= {variable["name"] for variable in spec["containers"][0]["env"]}
        assert written <= known, scenario


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_files_it_writes_are_files_the_control_plane_reads(scenario, tmp_path):
    from controlplane.identity.mapping import Mapping

    for thing in objects(merged(values(scenario), {"controlplane": {"revoked": [{"name": "dns:lost.example.org"}]}})):
        if "sidecars.yaml" in thing.get("data", ()):
            path = tmp_path / "sidecars.yaml"
            path.write_text(thing["data"]["sidecars.yaml"])
            assert len(Mapping(str(path), WatchedFiles())) == len(values(scenario)["controlplane"]["sidecars"])
            assert yaml.safe_load(thing["data"]["revoked.yaml"]) == {"revoked": [{"name": "dns:lost.example.org"}]}
            return
    assert values(scenario)["controlplane"]["insecure"]


def _neat(text: str) -> str:
    """Without the blanks that templates leave at line ends."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
