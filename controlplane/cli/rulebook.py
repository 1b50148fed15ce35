"""The rules that recorded decisions were made by: asked of the control plane once per range of revisions, or from a file."""

from __future__ import annotations

import json
from bisect import bisect_right, insort
from pathlib import Path
from typing import NamedTuple

from google.protobuf import json_format
from sidestep.v1 import admin_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.client import Client
from controlplane.cli.failures import NOT_FOUND, Failure

API_VERSION = "sidestep.dev/v1"
KIND = "RuleHistory"


class Chapter(NamedTuple):
    """The rules that hold from one revision on and before another."""

    from_revision: int
    until_revision: int
    rules: admin_pb2.GetRulesResponse


class Rulebook:
    """Rules by tenant, epoch and revision. With a client it asks for what it does not have; it keeps what it was told.

    `notes` say, for each tenant and epoch, what it did not find.
    """

    def __init__(self, client: Client | None) -> None:
        self._client = client
        self.notes: dict[tuple[str, int], str] = {}
        # By (tenant, epoch): sorted, and without overlaps.
        self._chapters: dict[tuple[str, int], list[Chapter]] = {}
        self._heads: dict[str, tuple[int, int]] = {}
        # The history of a tenant begins behind this revision.
        self._before: dict[tuple[str, int], int] = {}
        self._unknown: set[tuple[str, int, int]] = set()

    @classmethod
    def load(cls, path: Path) -> Rulebook:
        """Reads what `save` wrote. Raises Failure."""
        book = cls(None)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["apiVersion"] != API_VERSION or document["kind"] != KIND:
                raise ValueError(f"its kind is not {API_VERSION} {KIND}")
            for entry in document["rules"]:
                rules = json_format.ParseDict(entry["rules"], admin_pb2.GetRulesResponse())
                book._add(str(entry["tenant"]), int(entry["epoch"]), rules)
        except (ValueError, LookupError, TypeError, json_format.ParseError) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Failure(f"{path}: is not a file made by --save-rules: {problem}") from None
        return book

    def save(self, path: Path) -> None:
        """Writes all that was found, for a replay without a control plane."""
        rules = [
            {"tenant": tenant, "epoch": epoch, "rules": json_format.MessageToDict(chapter.rules)}
            for (tenant, epoch), chapters in sorted(self._chapters.items())
            for chapter in chapters
        ]
        document = {"apiVersion": API_VERSION, "kind": KIND, "rules": rules}
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def find(self, tenant: str, epoch: int, revision: int) -> Chapter | None:
        """The rules at a revision of the tenant's urgent lane; None if they are not known. Raises Failure if the control
        plane cannot be asked."""
        chapters = self._chapters.get((tenant, epoch), [])
        index = bisect_right(chapters, revision, key=lambda chapter: chapter.from_revision) - 1
        if index >= 0 and revision < chapters[index].until_revision:
            return chapters[index]
        chapter = None if self._client is None else self._ask(self._client, tenant, epoch, revision)
        if chapter is None:
            self.notes.setdefault(
                (tenant, epoch), f"tenants/{tenant}: no rules of revision {epoch}:{revision} are known"
            )
        return chapter

    def _ask(self, client: Client, tenant: str, epoch: int, revision: int) -> Chapter | None:
        if revision <= self._before.get((tenant, epoch), -1) or (tenant, epoch, revision) in self._unknown:
            return None
        # What holds "still" does so up to the head as it was before it was asked for; behind that it may have changed since.
        if self._heads.get(tenant, (epoch, -1)) < (epoch, revision):
            self._heads[tenant] = _head(client, tenant)
        head_epoch, head = self._heads[tenant]
        if epoch != head_epoch or revision > head:
            self._unknown.add((tenant, epoch, revision))
            return None
        request = admin_pb2.GetRulesRequest(
            parent=f"tenants/{tenant}", revision=pb.Revision(epoch=epoch, revision=revision)
        )
        try:
            rules: admin_pb2.GetRulesResponse = client.call("GetRules", request)
        except Failure as failure:
            if failure.code != NOT_FOUND:
                raise
            self._before[(tenant, epoch)] = revision
            self.notes[(tenant, epoch)] = failure.message
            return None
        rules.until_revision = rules.until_revision or head + 1
        return self._add(tenant, epoch, rules)

    def _add(self, tenant: str, epoch: int, rules: admin_pb2.GetRulesResponse) -> Chapter:
        chapters = self._chapters.setdefault((tenant, epoch), [])
        chapter = Chapter(rules.from_revision, rules.until_revision, rules)
        # The last one as it was known earlier, when the head was lower.
        chapters[:] = [other for other in chapters if other.from_revision != chapter.from_revision]
        insort(chapters, chapter, key=lambda item: item.from_revision)
        return chapter


def _head(client: Client, tenant: str) -> tuple[int, int]:
    """Epoch and revision of the tenant's urgent lane; zeros if it has none."""
    request = admin_pb2.GetRevisionsRequest(parent=f"tenants/{tenant}")
    response: admin_pb2.GetRevisionsResponse = client.call("GetRevisions", request)
    heads = ((head.epoch, head.revision) for head in response.heads if head.lane == pb.LANE_URGENT)
    return next(heads, (0, 0))
