"""Control plane, sidecar and OTLP receiver as real processes in a temporary folder, for the demo and `make up`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from examples.callers import write_callers
from examples.receiver import Receiver

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
_READY = re.compile(r"ready\b.*?grpc=(\S+)")


def program(name: str) -> str:
    """Path of a program installed beside the running Python."""
    return str(Path(sys.executable).with_name(name))


class Program:
    """One process of the stack; its output goes to a log file, which `fail` shows."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        self._output = log.open("ab")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SIDESTEP_", "OTEL_"))}
        self._process = subprocess.Popen(
            arguments,
            env=clean | environment,
            stdout=subprocess.PIPE,
            stderr=self._output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._ready = threading.Event()
        self.address = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_ready(self) -> str:
        """Its gRPC address, once it answers. Raises RuntimeError with the end of its log if it does not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text()[-4000:]}")
        return self.address

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it takes too long."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()
        self._output.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for raw in lines:
                self._output.write(raw)
                self._output.flush()
                match = _READY.search(raw.decode(errors="replace"))
                if match:
                    self.address = match[1]
                    self._ready.set()


class Stack:
    """The three together. `with Stack() as stack:` starts them and stops them again, whatever happens."""

    def __init__(
        self,
        *,
        tenant: str = "acme",
        soft_stale: str = "5m",
        listen: str = "127.0.0.1:0",
        control_plane_listen: str = "127.0.0.1:0",
        echo_spans: bool = False,
        settings: Mapping[str, str] | None = None,
        callers: bool = False,
        control_plane_settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings`: of the sidecar, besides those the stack gives it and before them; `control_plane_settings` likewise.
        `callers`: only the payments service may call, with what is in `token_file`.
        """
        self.tenant = tenant
        self._soft_stale = soft_stale
        self._listen = listen
        self._control_plane_listen = control_plane_listen
        self._echo_spans = echo_spans
        self.settings = dict(settings or {})
        self._control_plane_settings = dict(control_plane_settings or {})
        self._folder = tempfile.TemporaryDirectory(prefix="sidestep-")
        self.folder = Path(self._folder.name)
        self.admin_address = ""
        self.token_file: Path | None = None
        if callers:
            files = write_callers(self.folder)
            self.token_file = files.token
            self.settings |= {"SIDESTEP_CALLERS": str(files.callers), "SIDESTEP_DIAGNOSE": "false"}

    def __enter__(self) -> Stack:
        self.receiver = Receiver(echo=self._echo_spans)
        self.control_plane: Program | None = None
        self.sidecar: Program | None = None
        try:
            self.start_control_plane()
            self.start_sidecar()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def start_control_plane(self) -> None:
        """Starts it, again on the port and over the database it had before."""
        environment = {
            "SIDESTEP_CP_LISTEN": self.admin_address or self._control_plane_listen,
            "SIDESTEP_CP_HTTP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_CP_LOG_FORMAT": "text",
            "SIDESTEP_CP_DATABASE_URL": f"sqlite+aiosqlite:///{self.folder / 'controlplane.db'}",
        } | self._control_plane_settings
        self.control_plane = Program(
            "control plane", [program("sidestep-controlplane")], environment, self.folder / "controlplane.log"
        )
        self.admin_address = self.control_plane.wait_ready()

    def start_sidecar(self) -> None:
        """Starts it over the same data folder."""
        environment = {
            "SIDESTEP_TENANT": self.tenant,
            "SIDESTEP_LISTEN": self._listen,
            "SIDESTEP_HTTP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_CONTROL_PLANE": self.admin_address,
            "SIDESTEP_DATA_DIR": str(self.folder / "sidecar"),
            "SIDESTEP_SOFT_STALE": self._soft_stale,
            "SIDESTEP_DIAGNOSE": "true",
            "SIDESTEP_LOG_FORMAT": "text",
            # The receiver here takes traces only.
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.receiver.port}",
        } | self.settings
        self.sidecar = Program("sidecar", [program("sidestep-sidecar")], environment, self.folder / "sidecar.log")
        self.sidecar_address = self.sidecar.wait_ready()

    def stop_control_plane(self) -> None:
        """As in an outage."""
        if self.control_plane is not None:
            self.control_plane.stop()
            self.control_plane = None

    def stop_sidecar(self) -> None:
        """As in a redeployment: it drains and ships what is left."""
        if self.sidecar is not None:
            self.sidecar.stop()
            self.sidecar = None

    def forget_sidecar_data(self) -> None:
        """Removes the stopped sidecar's data folder, as if the pod were new."""
        shutil.rmtree(self.folder / "sidecar")

    def logs(self) -> str:
        """The end of both logs."""
        texts = []
        for name in ("controlplane.log", "sidecar.log"):
            path = self.folder / name
            if path.exists():
                texts.append(f"--- {name}\n{path.read_text(errors='replace')[-4000:]}")
        return "\n".join(texts)

    def _stop(self) -> None:
        self.stop_sidecar()
        self.stop_control_plane()
        self.receiver.stop()
        self._folder.cleanup()
