"""A whole sidecar and a control plane that know each other by certificates."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.fakes.guarded import PAYMENTS, Guarded, secrets_of
from tests.processes import sidecar, until


def fingerprint(certificate: Path) -> str:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).fingerprint(hashes.SHA256()).hex()


def test_it_follows_its_tenants_and_takes_a_new_certificate_up_when_the_old_one_is_revoked(tmp_path: Path) -> None:
    with Guarded(tmp_path) as plane:
        plane.put("ann")
        plane.put("zoe", tenant="globex", operator="eve")
        old = plane.authority.issue("payments", uris=[PAYMENTS])
        secrets = secrets_of([old])
        settings = {
            "SIDESTEP_CONTROL_PLANE": plane.grpc,
            "SIDESTEP_CONTROL_PLANE_TLS_CA": str(plane.authority.certificate),
            "SIDESTEP_CONTROL_PLANE_TLS_CERT": str(old.certificate),
            "SIDESTEP_CONTROL_PLANE_TLS_KEY": str(old.key),
            "SIDESTEP_SIDECAR_NAME": "pod-1",
        }
        with sidecar(tmp_path / "pod", **settings) as pod:
            until(lambda: plane.listed().get("pod-1") and plane.listed()["pod-1"].cursors, "the sidecar", 30)
            status = plane.listed()["pod-1"]
            assert status.identity == PAYMENTS
            assert {cursor.tenant for cursor in status.cursors} == {"acme"}
            revoked = fingerprint(old.certificate)
            plane.authority.issue("payments", uris=[PAYMENTS])
            first = status.connect_time.ToNanoseconds()
            plane.write(plane.revoked, revoked=[{"fingerprint": revoked}])

            def again() -> bool:
                latest = plane.listed()["pod-1"]
                return latest.connected and latest.connect_time.ToNanoseconds() > first

            until(again, "a stream with the new certificate", 30)
            plane.put("bob")
            until(lambda: max(c.revision for c in plane.listed()["pod-1"].cursors) == 2, "what came since", 30)
            assert plane.counters.ended()["revoked_certificate"] == 1
            assert not any(line in pod.errors() for line in secrets)


def test_without_its_certificate_it_starts_all_the_same_and_follows_once_the_file_is_there(tmp_path: Path) -> None:
    with Guarded(tmp_path) as plane:
        plane.put("ann")
        late = tmp_path / "late"
        settings = {
            "SIDESTEP_CONTROL_PLANE": plane.grpc,
            "SIDESTEP_CONTROL_PLANE_TLS_CA": str(plane.authority.certificate),
            "SIDESTEP_CONTROL_PLANE_TLS_CERT": str(late / "tls.crt"),
            "SIDESTEP_CONTROL_PLANE_TLS_KEY": str(late / "tls.key"),
            "SIDESTEP_SIDECAR_NAME": "pod-1",
        }
        with sidecar(tmp_path / "pod", **settings) as pod:
            until(lambda: "tls.crt: no such file" in pod.errors(), "the log to name the file", 30)
            # As Kubernetes mounts secrets: links to a folder that is replaced by a rename.
            issued = plane.authority.issue("payments", uris=[PAYMENTS])
            version = late / "..2026"
            version.mkdir(parents=True)
            (version / "tls.crt").write_bytes(issued.certificate.read_bytes())
            (version / "tls.key").write_bytes(issued.key.read_bytes())
            for name in ("tls.crt", "tls.key"):
                (late / name).symlink_to(f"..data/{name}")
            (late / "..data").symlink_to("..2026")
            until(lambda: "pod-1" in plane.listed() and plane.listed()["pod-1"].connected, "the sidecar", 30)
