"""The connection of one command to a control plane, and what was said about it on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sidestep.v1 import admin_pb2, admin_pb2_grpc, report_pb2, report_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.credentials import authorization
from controlplane.cli.failures import NOT_FOUND, Failure, from_rpc
from controlplane.kinds import KINDS
from engine.errors import InvalidInputError
from engine.names import Collection, check_tenant, make_name

R = TypeVar("R")

DEFAULT_SERVER = "127.0.0.1:9190"
DEFAULT_DEADLINE_S = 10.0
# An import's answer comes when a million records are written.
IMPORT_DEADLINE_S = 1800.0
# At 500 bytes a device and 120 a signal, far below the 4 MiB that a server accepts.
_BATCH = 1_000
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class Client:
    """One command's view of a control plane. The channel opens with the first call. Every method raises Failure."""

    def __init__(self) -> None:
        self.server = DEFAULT_SERVER
        self.tenant_option: str | None = None
        self.output = "table"
        self.deadline_s = DEFAULT_DEADLINE_S
        self.operator_token_file: str | None = None
        self.actor: str | None = None
        # PEM files: TLS begins with the first.
        self.ca_file: str | None = None
        self.cert_file: str | None = None
        self.key_file: str | None = None
        # Of commands that change something (controlplane.cli.changes).
        self.propose = False
        self.why = ""
        self.ticket = ""
        self._channel: grpc.Channel | None = None

    def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None:
            self._channel.close()

    @property
    def tenant(self) -> str:
        """The tenant the command is about."""
        if self.tenant_option is None:
            raise Failure("--tenant: is required (or SIDESTEP_TENANT)")
        try:
            return check_tenant(self.tenant_option, "--tenant")
        except InvalidInputError as error:
            raise Failure(str(error)) from None

    @property
    def parent(self) -> str:
        """The tenant's name: `tenants/acme`."""
        return f"tenants/{self.tenant}"

    def name(self, collection: Collection, record_id: str) -> str:
        """A record's full name."""
        try:
            return str(make_name(self.tenant, collection, record_id, KINDS[collection].field))
        except InvalidInputError as error:
            raise Failure(str(error)) from None

    def put(self, record: Any, *, validate_only: bool = False) -> admin_pb2.PutResourceResponse:
        """Creates or replaces a record."""
        request = admin_pb2.PutResourceRequest(
            resource=wrap(record), validate_only=validate_only, reason=self.why, ticket=self.ticket
        )
        response: admin_pb2.PutResourceResponse = self.call("PutResource", request)
        return response

    def get(self, collection: Collection, record_id: str) -> Any:
        """A record; Failure with NOT_FOUND if there is none."""
        request = admin_pb2.GetResourceRequest(name=self.name(collection, record_id))
        response: admin_pb2.GetResourceResponse = self.call("GetResource", request)
        return getattr(response.resource, KINDS[collection].field)

    def find(self, collection: Collection, record_id: str) -> Any | None:
        """A record, or None."""
        try:
            return self.get(collection, record_id)
        except Failure as failure:
            if failure.code == NOT_FOUND:
                return None
            raise

    def list(self, collection: Collection, prefix: str = "", limit: int | None = None) -> Iterator[Any]:
        """Records by id, fetched page by page."""
        return islice(self._pages(collection, prefix, limit), limit)

    def delete(self, collection: Collection, record_id: str) -> pb.Revision:
        """Deletes a record; Failure with NOT_FOUND if there is none."""
        request = admin_pb2.DeleteResourceRequest(
            name=self.name(collection, record_id), reason=self.why, ticket=self.ticket
        )
        response: admin_pb2.DeleteResourceResponse = self.call("DeleteResource", request)
        return response.revision

    def import_records(self, start: admin_pb2.ImportStart, records: Iterable[Any]) -> admin_pb2.ImportResourcesResponse:
        """Imports records, as lazily as they come. If `records` raises Failure, nothing is written."""
        failures: list[Failure] = []

        def messages() -> Iterator[admin_pb2.ImportResourcesRequest]:
            yield admin_pb2.ImportResourcesRequest(start=start)
            count = 0
            source = iter(records)
            try:
                while batch := [wrap(record) for record in islice(source, _BATCH)]:
                    count += len(batch)
                    yield admin_pb2.ImportResourcesRequest(batch=admin_pb2.ImportBatch(resources=batch))
            except Failure as failure:
                # The stream ends without a commit, so that the server discards it.
                failures.append(failure)
                return
            yield admin_pb2.ImportResourcesRequest(commit=admin_pb2.ImportCommit(count=count))

        deadline_s = max(self.deadline_s, IMPORT_DEADLINE_S)
        try:
            response: admin_pb2.ImportResourcesResponse = self.call(
                "ImportResources", messages(), deadline_s=deadline_s
            )
        except Failure as failure:
            raise failures[0] if failures else failure from None
        return response

    def report(self, request: report_pb2.ReportJournalRequest) -> report_pb2.ReportJournalResponse:
        """Tells the control plane where chains of a journal stand."""
        stub = report_pb2_grpc.ReportServiceStub(self._open())  # type: ignore[no-untyped-call]
        try:
            response: report_pb2.ReportJournalResponse = stub.ReportJournal(request, timeout=self.deadline_s)
        except grpc.RpcError as error:
            raise from_rpc(error, self.server) from None
        return response

    def call(
        self,
        method: str,
        request: Any,
        *,
        deadline_s: float | None = None,
        service: Callable[[grpc.Channel], Any] = admin_pb2_grpc.AdminServiceStub,
    ) -> Any:
        """Calls AdminService, or another service of operators by its stub."""
        try:
            return getattr(service(self._open()), method)(
                request, timeout=deadline_s or self.deadline_s, metadata=self._metadata()
            )
        except grpc.RpcError as error:
            raise from_rpc(error, self.server) from None

    def stream(self, method: str, request: Any, *, service: Callable[[grpc.Channel], Any]) -> Iterator[Any]:
        """Calls a method that answers with many messages; waits for the last one as long as an import may take."""
        deadline_s = max(self.deadline_s, IMPORT_DEADLINE_S)
        try:
            yield from getattr(service(self._open()), method)(request, timeout=deadline_s, metadata=self._metadata())
        except grpc.RpcError as error:
            raise from_rpc(error, self.server) from None

    def _metadata(self) -> Sequence[tuple[str, str]]:
        """Who calls: by token, or in development mode by name."""
        metadata = [("x-sidestep-actor", self.actor)] if self.actor else []
        if self.operator_token_file is not None:
            # Read for each call: a long import may outlive a token.
            with open(self.operator_token_file, encoding="utf-8") as file:
                hidden = self.ca_file is not None
                token = authorization(file, "--operator-token-file", self.server, "--server", encrypted=hidden)
            metadata.append(token)
        return metadata

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = open_channel(self.server, self._credentials())
        return self._channel

    def _credentials(self) -> grpc.ChannelCredentials | None:
        """None: plain text. Raises Failure naming the file that cannot be used."""
        if self.ca_file is None:
            if self.cert_file or self.key_file:
                raise Failure("--ca: is required for TLS")
            return None
        if (self.cert_file is None) != (self.key_file is None):
            raise Failure("--cert: goes together with --key")
        files = {"--ca": self.ca_file, "--cert": self.cert_file, "--key": self.key_file}
        read = {}
        for option, path in files.items():
            if path is None:
                continue
            try:
                read[option] = Path(path).read_bytes()
            except OSError as error:
                raise Failure(f"{option}: {path}: {error.strerror}") from None
            what = b"PRIVATE KEY-----" if option == "--key" else b"-----BEGIN CERTIFICATE-----"
            if what not in read[option]:
                raise Failure(
                    f"{option}: {path}: holds no {'private key' if option == '--key' else 'certificate'} in PEM"
                )
        return grpc.ssl_channel_credentials(read["--ca"], read.get("--key"), read.get("--cert"))

    def _pages(self, collection: Collection, prefix: str, limit: int | None) -> Iterator[Any]:
        request = admin_pb2.ListResourcesRequest(
            parent=self.parent,
            collection=pb.Collection.Name(collection),
            page_size=min(limit or 1000, 1000),
            id_prefix=prefix,
        )
        while True:
            response: admin_pb2.ListResourcesResponse = self.call("ListResources", request)
            for resource in response.resources:
                yield getattr(resource, KINDS[collection].field)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel to a `host:port` or `unix:` address; without credentials in plain text."""
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # A stray proxy setting must not carry an admin call out of the machine.
        ("grpc.enable_http_proxy", 0),
    ]
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def collection_of(record: Any) -> Collection:
    """The collection a message belongs into."""
    return _BY_MESSAGE[type(record)]


def wrap(record: Any) -> pb.Resource:
    """A record in its envelope."""
    resource = pb.Resource()
    getattr(resource, KINDS[collection_of(record)].field).CopyFrom(record)
    return resource


_BY_MESSAGE = {kind.message: collection for collection, kind in KINDS.items()}
