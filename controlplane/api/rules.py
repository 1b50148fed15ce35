"""What decisions were made by, and whom they are about: the bodies of AdminService.GetRules and HashSubject."""

from __future__ import annotations

from sidestep.v1 import admin_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.api.links import records
from controlplane.api.resources import decode
from controlplane.store import Store
from engine.errors import InvalidInputError
from engine.names import Collection, parse_name, parse_parent
from engine.pseudonym import user_hash


async def get_rules(store: Store, request: admin_pb2.GetRulesRequest) -> admin_pb2.GetRulesResponse:
    """The policies and settings at a revision of the urgent lane, exactly as stored, and the range in which they hold.

    Raises NotFoundError if they were never recorded.
    """
    tenant = parse_parent(request.parent)
    if not request.revision.epoch:
        raise InvalidInputError("revision.epoch", "is required")
    rules = await store.rules(tenant, request.revision.epoch, request.revision.revision)
    response = admin_pb2.GetRulesResponse(from_revision=rules.from_revision, until_revision=rules.until_revision)
    for collection, _, value in rules.records:
        if collection == Collection.POLICIES:
            response.policies.add().ParseFromString(value)
        else:
            response.settings.ParseFromString(value)
            # Settings that say nothing are still settings.
            response.settings.SetInParent()
    return response


async def hash_subject(store: Store, request: admin_pb2.HashSubjectRequest) -> admin_pb2.HashSubjectResponse:
    """What stands for a subject in `user.hash`, by each of the tenant's TENANT keys, newest first. Secrets stay here."""
    name = parse_name(request.name)
    if name.collection is not Collection.SUBJECTS:
        raise InvalidInputError("name", f"{request.name!r} is not of the form tenants/{{tenant}}/subjects/{{subject}}")
    keys: list[tuple[str, pb.Key]] = []
    async for key_id, value in records(store, name.tenant, Collection.KEYS):
        key: pb.Key = decode(Collection.KEYS, value)
        if key.kind == pb.KEY_KIND_TENANT and key.secret:
            keys.append((key_id, key))
    response = admin_pb2.HashSubjectResponse()
    for key_id, key in sorted(keys, key=lambda item: item[1].start_time.ToNanoseconds(), reverse=True):
        found = response.hashes.add(key=key_id, hash=user_hash(key.secret, name.id))
        for field in ("start_time", "expire_time"):
            if key.HasField(field):
                getattr(found, field).CopyFrom(getattr(key, field))
    return response
