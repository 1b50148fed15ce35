"""What AdminService tells of the sidecars' journals."""

from __future__ import annotations

from sidestep.v1 import admin_pb2

from controlplane.api.chains import check_chain
from controlplane.api.paging import bad_token, page_size, read_token, write_token
from controlplane.api.sidecars import check_sidecar
from controlplane.store import Store


async def list_chains(store: Store, request: admin_pb2.ListJournalChainsRequest) -> admin_pb2.ListJournalChainsResponse:
    """A page of chains as last reported, by sidecar and chain."""
    if request.sidecar:
        check_sidecar(request.sidecar, "sidecar")
    limit = page_size(request.page_size)
    # Neither of the two has a line break in it.
    sidecar, _, chain = read_token(request.page_token).partition("\n")
    chains = await store.journals.read(request.sidecar, (sidecar, chain), limit)
    connected = await store.connected_sidecars({status.sidecar for status in chains})
    for status in chains:
        status.connected = status.sidecar in connected
    response = admin_pb2.ListJournalChainsResponse(chains=chains)
    if len(chains) == limit:
        response.next_page_token = write_token(f"{chains[-1].sidecar}\n{chains[-1].chain.chain}")
    return response


async def list_anchors(
    store: Store, request: admin_pb2.ListJournalAnchorsRequest
) -> admin_pb2.ListJournalAnchorsResponse:
    """A page of a chain's anchors, oldest first."""
    check_sidecar(request.sidecar, "sidecar")
    check_chain(request.chain, "chain")
    limit = page_size(request.page_size)
    after = read_token(request.page_token) or "0"
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise bad_token()
    anchors = await store.journals.anchors(request.sidecar, request.chain, int(after), limit)
    response = admin_pb2.ListJournalAnchorsResponse(anchors=anchors)
    if len(anchors) == limit:
        response.next_page_token = write_token(str(anchors[-1].records))
    return response
