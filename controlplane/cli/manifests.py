"""Files with resources: a YAML stream of documents like policies (`apiVersion`, `kind`, `metadata`, `spec`).

`kind` is the message's name (`Grant`), `metadata` holds `name` (the id) and perhaps `tenant`, `spec` the other fields in
the JSON mapping of protobuf. Policies are written as themselves. Faults are reported with line and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.failures import Failure, Fault, FileFailure
from controlplane.cli.values import label
from controlplane.kinds import KINDS
from engine.errors import InvalidInputError
from engine.names import SIGNAL_KINDS, SINGLETON_ID, SINGLETONS, Collection, make_name, signal_id
from engine.policy import PolicyError
from engine.policy.source import Path, Tree, format_path, load

API_VERSION = "sidestep.dev/v1"
_SEPARATOR = re.compile(r"^---(?=\s|$)|^\.\.\.\s*$")
_STEP = re.compile(r"Failed to parse (\w+) field: ")
_PLACE = re.compile(r"\.? at \"?(\w+)\.?([\w.\[\]]*?)\.*\"?\.*$")
_PATH_PART = re.compile(r"\w+")

KIND_NAMES = {kind.message.DESCRIPTOR.name: collection for collection, kind in KINDS.items()}


class Document(NamedTuple):
    """One document of a YAML stream: its text exactly as written, and how many lines come before it."""

    file: str
    whole: str
    text: str
    lines_before: int

    def tree(self) -> Tree:
        """Parses it. Raises FileFailure."""
        try:
            return load(self.text)
        except PolicyError as error:
            raise self.failure(Fault(*problem) for problem in error.problems) from None

    def failure(self, faults: Iterator[Fault] | list[Fault]) -> FileFailure:
        """A failure for faults whose lines count within this document."""
        moved = [fault._replace(line=fault.line + self.lines_before if fault.line else 0) for fault in faults]
        return FileFailure(self.file, self.whole, moved)


class Manifest(NamedTuple):
    """A resource from a file, named and ready to put."""

    document: Document
    collection: Collection
    record: Any


def split(file: TextIO) -> list[Document]:
    """The documents of a YAML stream, without empty ones. Raises Failure if it is not text."""
    try:
        whole = file.read()
    except UnicodeDecodeError as error:
        raise Failure(f"{label(file)}: not UTF-8 text: {error.reason}") from None
    parts: list[tuple[int, list[str]]] = [(0, [])]
    for number, line in enumerate(whole.splitlines(keepends=True)):
        # At the margin these mark documents wherever they stand, also within a block scalar.
        marker = _SEPARATOR.match(line)
        if marker is None:
            parts[-1][1].append(line)
            continue
        rest = line[marker.end() :]
        parts.append((number, [rest]) if rest.strip() else (number + 1, []))
    documents = [Document(label(file), whole, "".join(lines), before) for before, lines in parts]
    return [document for document in documents if _has_content(document.text)]


def only_document(file: TextIO) -> Document:
    """The one document of a file. Raises Failure if there are more or none."""
    documents = split(file)
    if len(documents) != 1:
        raise Failure(f"{label(file)}: has {len(documents)} documents, not one")
    return documents[0]


def read(file: TextIO, tenant: str | None, only: str | None = None) -> list[Manifest]:
    """The resources of a file. `tenant` is for those that name none; `only`: the one kind allowed. Raises Failure."""
    documents = split(file)
    if not documents:
        raise Failure(f"{label(file)}: has no document")
    return [read_document(document, tenant, only) for document in documents]


def read_one(file: TextIO, tenant: str | None, kind: str) -> Manifest:
    """The single resource of a file. Raises Failure."""
    manifests = read(file, tenant, kind)
    if len(manifests) != 1:
        raise Failure(f"{label(file)}: has {len(manifests)} documents, not one")
    return manifests[0]


def fill(message: Message, value: object, tree: Tree, path: Path, document: Document) -> None:
    """Fills a message from the JSON mapping at `path` of a document. Raises FileFailure with the place."""
    if not isinstance(value, dict):
        line, column = tree.position(path)
        raise document.failure([Fault(line, column, format_path(path), "must be a mapping")])
    try:
        json_format.ParseDict(value, message)
    except json_format.ParseError as error:
        inner, problem = _parse_problem(str(error))
        line, column = tree.position((*path, *inner))
        raise document.failure([Fault(line, column, format_path((*path, *inner)), problem)]) from None


def dump(collection: Collection, record: Any) -> str:
    """A record as the document that `read` reads back. A policy is its author's own text."""
    if isinstance(record, pb.Policy):
        return record.source if record.source.endswith("\n") else record.source + "\n"
    spec = json_format.MessageToDict(record)
    _, tenant, _, record_id = spec.pop("name").split("/")
    spec.pop("secret", None)
    if isinstance(record, pb.Grant):
        # What the control plane saw is not for a document to say.
        for mark in ("requester", "approvals", "stateReason"):
            spec.pop(mark, None)
    kind = record.DESCRIPTOR.name
    document = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": record_id, "tenant": tenant},
        "spec": spec,
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def read_document(document: Document, tenant: str | None, only: str | None = None) -> Manifest:
    """The resource of one document. Raises FileFailure."""
    tree = document.tree()
    value = tree.value

    def fault(path: Path, problem: str) -> FileFailure:
        return document.failure([Fault(*tree.position(path), format_path(path), problem)])

    if not isinstance(value, dict):
        raise fault((), "a resource is a mapping with apiVersion, kind, metadata and spec")
    if value.get("apiVersion") != API_VERSION:
        raise fault(("apiVersion",), f"must be {API_VERSION}")
    kind = value.get("kind")
    if kind not in KIND_NAMES or (only is not None and kind != only):
        raise fault(("kind",), f"must be {only}" if only else f"must be one of {', '.join(KIND_NAMES)}")
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise fault(("metadata",), "must be a mapping with name and tenant")
    for key in (set(value) - {"apiVersion", "kind", "metadata", "spec"}, set(metadata) - {"name", "tenant"}):
        if key and kind != "Policy":
            raise fault((), f"unknown key {min(map(str, key))!r}")
    collection = KIND_NAMES[kind]
    record = KINDS[collection].message()
    if kind == "Policy":
        record.source = document.text
    else:
        spec = value.get("spec", {})
        if isinstance(spec, dict) and "name" in spec:
            raise fault(("spec", "name"), "the name is in metadata")
        fill(record, spec, tree, ("spec",), document)
    of_tenant = metadata.get("tenant") or tenant
    if of_tenant is None:
        raise fault(("metadata",), "tenant is required (here, as --tenant or as SIDESTEP_TENANT)")
    if tenant is not None and of_tenant != tenant:
        raise fault(("metadata", "tenant"), f"{of_tenant!r} is not the tenant asked for, {tenant!r}")
    try:
        record.name = str(make_name(of_tenant, collection, metadata.get("name") or _implied_id(collection, record)))
    except InvalidInputError as error:
        raise fault(("metadata", "name"), error.problem) from None
    return Manifest(document, collection, record)


def _implied_id(collection: Collection, record: Any) -> str:
    """The id of a record that needs none given."""
    if collection in SINGLETONS:
        return SINGLETON_ID
    if isinstance(record, pb.Signal) and 0 < record.kind <= len(SIGNAL_KINDS):
        return signal_id(SIGNAL_KINDS[record.kind - 1], record.value, record.source)
    return ""


def _parse_problem(text: str) -> tuple[Path, str]:
    """Where in the message, and what: `Failed to parse ceiling field: ... at Grant.ceiling.maxAge..`"""
    text = text.splitlines()[0]
    steps = tuple(_STEP.findall(text))
    problem = _STEP.sub("", text)
    place = _PLACE.search(problem)
    if place is None:
        return steps, problem.rstrip(".")
    path = tuple(int(part) if part.isdigit() else part for part in _PATH_PART.findall(place[2]))
    return path or steps, problem[: place.start()].rstrip(".")


def _has_content(text: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith(("#", "%")) for line in text.splitlines())
