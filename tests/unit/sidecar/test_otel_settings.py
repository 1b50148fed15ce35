"""OpenTelemetry's own variables: read as its specification says, refused by name where they cannot be used."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from engine.errors import InvalidInputError
from sidecar.config import Config, ConfigError, load, resource_attributes
from sidecar.otel import Metrics, Otlp, Signal, parse_metrics, parse_otlp
from tests.fakes.certificates import Authority

OTLP = "OTEL_EXPORTER_OTLP_"
TENANT = {"SIDESTEP_TENANT": "acme", "SIDESTEP_SIDECAR_NAME": "pod-1"}


def otlp(signal: Signal = "traces", /, **variables: str) -> Otlp:
    return parse_otlp({OTLP + name: value for name, value in variables.items()}, signal)


def loaded(**environment: str) -> Config:
    return load(TENANT | environment)


@pytest.mark.parametrize(
    ("environment", "endpoint", "insecure"),
    [
        ({}, "localhost:4317", True),
        ({"PROTOCOL": "grpc", "ENDPOINT": "http://collector:4317"}, "collector:4317", True),
        ({"ENDPOINT": "https://collector"}, "collector:4317", False),
        ({"ENDPOINT": "https://collector:443/"}, "collector:443", False),
        ({"ENDPOINT": "collector:4317"}, "collector:4317", False),
        ({"ENDPOINT": "collector:4317", "INSECURE": "TRUE"}, "collector:4317", True),
        ({"ENDPOINT": "https://collector:4317", "INSECURE": "true"}, "collector:4317", False),
        ({"ENDPOINT": "http://[::1]:5"}, "[::1]:5", True),
        ({"ENDPOINT": "http://a:1", "TRACES_ENDPOINT": "http://b:2"}, "b:2", True),
        ({"ENDPOINT": "http://a:1", "METRICS_ENDPOINT": "http://b:2"}, "a:1", True),
        ({"ENDPOINT": "http://a:1", "TRACES_ENDPOINT": " "}, "a:1", True),
    ],
)
def test_grpc_has_a_host_and_a_port(environment: dict[str, str], endpoint: str, insecure: bool) -> None:
    found = otlp(**environment)
    assert (found.protocol, found.endpoint, found.insecure) == ("grpc", endpoint, insecure)


@pytest.mark.parametrize(
    ("environment", "traces", "metrics"),
    [
        ({}, "http://localhost:4318/v1/traces", "http://localhost:4318/v1/metrics"),
        ({"ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces", "http://c:4318/v1/metrics"),
        ({"ENDPOINT": "https://c/otlp/"}, "https://c/otlp/v1/traces", "https://c/otlp/v1/metrics"),
        ({"TRACES_ENDPOINT": "https://t/in?key=1"}, "https://t/in?key=1", "http://localhost:4318/v1/metrics"),
        ({"TRACES_ENDPOINT": "http://t", "METRICS_ENDPOINT": "http://m/"}, "http://t", "http://m/"),
        ({"ENDPOINT": "http://[::1]:5", "INSECURE": "false"}, "http://[::1]:5/v1/traces", "http://[::1]:5/v1/metrics"),
    ],
)
def test_http_has_a_url_for_each_signal(environment: dict[str, str], traces: str, metrics: str) -> None:
    found = [otlp(signal, PROTOCOL="http/protobuf", **environment) for signal in ("traces", "metrics")]
    assert [(one.protocol, one.endpoint, one.insecure) for one in found] == [
        ("http/protobuf", url, url.startswith("http:")) for url in (traces, metrics)
    ]


def test_a_signals_own_variables_win() -> None:
    both = {"HEADERS": "a=1", "TIMEOUT": "1000", "COMPRESSION": "none", "PROTOCOL": "grpc"}
    own = {
        "METRICS_HEADERS": "b=2",
        "METRICS_TIMEOUT": "2500",
        "METRICS_COMPRESSION": "gzip",
        "METRICS_PROTOCOL": "http/protobuf",
    }
    traces, metrics = otlp("traces", **both, **own), otlp("metrics", **both, **own)
    assert (traces.protocol, traces.headers, traces.timeout_s, traces.gzip) == ("grpc", (("a", "1"),), 1, False)
    assert (metrics.protocol, metrics.headers, metrics.timeout_s, metrics.gzip) == (
        "http/protobuf",
        (("b", "2"),),
        2.5,
        True,
    )


def test_headers_are_percent_decoded_and_trimmed() -> None:
    found = otlp(HEADERS="Authorization=Bearer%20abc%20, x-scope = a , x-empty=, x-list=a%2Cb%3D")
    assert found.headers == (
        ("authorization", "Bearer abc"),
        ("x-scope", "a"),
        ("x-empty", ""),
        ("x-list", "a,b="),
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ENDPOINT": "ftp://c:1"}, "ENDPOINT: 'ftp://c:1': the scheme"),
        ({"ENDPOINT": "http://c:1/v1/traces"}, "is not http://host:port, as protocol grpc needs it"),
        ({"ENDPOINT": "http://c:0"}, "is not http://host:port"),
        ({"ENDPOINT": "http://c:99999"}, "Port out of range"),
        ({"TRACES_ENDPOINT": "http://u:p@c:1"}, "TRACES_ENDPOINT: "),
        ({"TIMEOUT": "10s"}, "TIMEOUT: '10s' is not a number of milliseconds"),
        ({"TIMEOUT": "0"}, "TIMEOUT: '0' is not"),
        ({"TRACES_TIMEOUT": "9" * 30}, "TRACES_TIMEOUT: "),
        ({"PROTOCOL": "http/json"}, "PROTOCOL: 'http/json' is not spoken here, only grpc and http/protobuf"),
        ({"COMPRESSION": "zstd"}, "COMPRESSION: 'zstd' is neither none nor gzip"),
        ({"HEADERS": "secret"}, "HEADERS: must be a list"),
        ({"HEADERS": "a b=1"}, "HEADERS: 'a b' cannot be sent"),
        ({"HEADERS": "grpc-timeout=1"}, "HEADERS: 'grpc-timeout' is set by the protocol"),
        ({"HEADERS": "x-bin=1"}, "HEADERS: 'x-bin' is set by the protocol"),
        ({"TRACES_HEADERS": "Content-Type=text/html"}, "TRACES_HEADERS: 'content-type' is set by the protocol"),
        ({"CERTIFICATE": "/none.pem"}, "CERTIFICATE: '/none.pem' is not a file"),
        ({"PROTOCOL": "http/protobuf", "ENDPOINT": "c:4318"}, "ENDPOINT: is not http://host:port/path"),
        ({"PROTOCOL": "http/protobuf", "ENDPOINT": "http:///v1"}, "ENDPOINT: is not http://host:port/path"),
        ({"PROTOCOL": "http/protobuf", "ENDPOINT": "http://c:x"}, "ENDPOINT: not a URL"),
        ({"PROTOCOL": "http/protobuf", "ENDPOINT": "http://c/?key=1"}, "only possible in OTEL_EXPORTER_OTLP_TRACES_"),
        ({"PROTOCOL": "http/protobuf", "ENDPOINT": "http://u:p@c/"}, "must be a plain URL"),
        ({"PROTOCOL": "http/protobuf", "ENDPOINT": "http://c/a b"}, "must be a plain URL"),
        ({"PROTOCOL": "http/protobuf", "ENDPOINT": "http://c/#a"}, "must be a plain URL"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        otlp(**environment)
    assert message in str(refused.value)
    assert str(refused.value).startswith(OTLP)


@pytest.mark.parametrize(
    "environment",
    [
        {"HEADERS": "authorization=s3cret%0Ax"},
        {"PROTOCOL": "http/protobuf", "ENDPOINT": "http://c/?key=s3cret"},
        {"PROTOCOL": "http/protobuf", "TRACES_ENDPOINT": "http://u:s3cret@c/"},
        {"PROTOCOL": "http/protobuf", "TRACES_ENDPOINT": "c:1/?key=s3cret"},
    ],
)
def test_a_credential_is_never_repeated_in_a_message(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        otlp(**environment)
    assert "s3cret" not in str(refused.value)


def test_settings_that_may_hold_credentials_are_not_shown() -> None:
    assert "s3cret" not in repr(loaded(OTEL_EXPORTER_OTLP_HEADERS="authorization=s3cret"))


def test_tls_files_are_tried_before_the_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, others = authority.issue("ours"), authority.issue("others")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(ours.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("no PEM")
    good = {"CERTIFICATE": authority.certificate, "CLIENT_KEY": ours.key, "CLIENT_CERTIFICATE": ours.certificate}

    def read(**changes: Path | None) -> Otlp:
        files = {name: str(path) for name, path in (good | changes).items() if path is not None}
        return otlp(ENDPOINT="https://c", **files)

    assert read().files == tuple(good.values())
    for changes, message in (
        ({"CERTIFICATE": no_pem}, "CERTIFICATE: "),
        ({"CLIENT_KEY": None}, "CLIENT_KEY: a client's key and certificate go together"),
        ({"CLIENT_CERTIFICATE": None}, "CLIENT_CERTIFICATE: a client's key and certificate go together"),
        ({"CLIENT_KEY": others.key}, "CLIENT_CERTIFICATE: "),
        ({"CLIENT_KEY": locked}, "CLIENT_CERTIFICATE: "),
        ({"CLIENT_CERTIFICATE": no_pem}, "CLIENT_CERTIFICATE: "),
    ):
        with pytest.raises(InvalidInputError) as refused:
            read(**changes)
        assert str(refused.value).startswith(OTLP + message)
    # In plain text they are not used.
    assert otlp(ENDPOINT="http://c", CERTIFICATE=str(no_pem)).files == ()


@pytest.mark.parametrize(
    ("environment", "metrics"),
    [
        ({}, Metrics("otlp", 60)),
        ({"OTEL_METRICS_EXPORTER": "none"}, Metrics("none", 60)),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "1500"}, Metrics("otlp", 1.5)),
        ({"OTEL_SDK_DISABLED": "True"}, Metrics("none", 60)),
        ({"OTEL_SDK_DISABLED": "1"}, Metrics("otlp", 60)),
    ],
)
def test_whether_and_how_often_metrics_are_sent(environment: dict[str, str], metrics: Metrics) -> None:
    assert parse_metrics(environment) == metrics
    config = loaded(**environment)
    assert (config.metrics_exporter, config.metrics_interval_s) == metrics


def test_decisions_are_shipped_whatever_the_sdks_switches_say() -> None:
    config = loaded(OTEL_SDK_DISABLED="true", OTEL_TRACES_EXPORTER="none", OTEL_EXPORTER_OTLP_ENDPOINT="http://c:1")
    assert config.journal_sink == "otlp"
    assert config.otlp.endpoint == "c:1"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_METRICS_EXPORTER": "console"}, "OTEL_METRICS_EXPORTER: 'console' is neither otlp nor none"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "1m"}, "OTEL_METRIC_EXPORT_INTERVAL: '1m' is not a number of milliseconds"),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "thrift"}, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: 'thrift'"),
    ],
)
def test_bad_settings_of_metrics_are_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(**environment)
    assert str(refused.value).startswith(message)


def test_a_problem_of_both_signals_is_told_once_and_one_of_metrics_only_if_they_are_sent() -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(OTEL_EXPORTER_OTLP_TIMEOUT="x", OTEL_RESOURCE_ATTRIBUTES="x")
    assert len(str(refused.value).splitlines()) == 2
    loaded(OTEL_EXPORTER_OTLP_METRICS_TIMEOUT="x", OTEL_METRICS_EXPORTER="none")


def test_the_resource_says_which_sidecar_of_which_pod_this_is() -> None:
    assert resource_attributes(load(TENANT)) == {
        "service.name": "sidestep",
        "service.version": version("sidestep"),
        "service.instance.id": "pod-1",
    }
    config = loaded(
        SIDESTEP_POD_NAME="payments-7d9",
        SIDESTEP_POD_NAMESPACE="shop",
        SIDESTEP_POD_UID="5b1f",
        SIDESTEP_NODE_NAME="node-3",
        SIDESTEP_CONTAINER_NAME="sidestep",
    )
    assert resource_attributes(config) == {
        "service.name": "sidestep",
        "service.version": version("sidestep"),
        "service.instance.id": "pod-1",
        "k8s.pod.name": "payments-7d9",
        "k8s.namespace.name": "shop",
        "k8s.pod.uid": "5b1f",
        "k8s.node.name": "node-3",
        "k8s.container.name": "sidestep",
    }


def test_what_opentelemetrys_variables_say_of_the_resource_wins() -> None:
    attributes = resource_attributes(
        loaded(
            SIDESTEP_POD_NAME="payments-7d9",
            OTEL_RESOURCE_ATTRIBUTES="k8s.pod.name=other,service.name=ignored,service.version=9,deployment.environment.name=a%2Cb",
            OTEL_SERVICE_NAME="payments-sidecar",
        )
    )
    assert attributes["k8s.pod.name"] == "other"
    assert attributes["service.name"] == "payments-sidecar"
    assert attributes["service.version"] == "9"
    assert attributes["deployment.environment.name"] == "a,b"
    assert loaded(OTEL_RESOURCE_ATTRIBUTES="service.name=kept").resource == {"service.name": "kept"}


def test_the_instance_is_the_sidecars_name_by_which_its_chains_are_known() -> None:
    attributes = resource_attributes(loaded(OTEL_RESOURCE_ATTRIBUTES="service.instance.id=other"))
    assert attributes["service.instance.id"] == "pod-1"


@pytest.mark.parametrize("value", ["a=b\udcff", "a=%0A", "%00=a"])
def test_an_attribute_that_is_no_text_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="OTEL_RESOURCE_ATTRIBUTES: "):
        loaded(OTEL_RESOURCE_ATTRIBUTES=value)
