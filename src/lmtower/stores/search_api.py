"""Searching: ``/v1/vector_stores/{id}/search`` for clients, ``/internal/search`` for the gateway's ``file_search``."""

from __future__ import annotations

from starlette.responses import Response

from lmtower.stores import citations, shapes
from lmtower.stores.access import client_of_gateway
from lmtower.stores.call import Call, Handler, reply
from lmtower.stores.requests import InternalSearch, Search


def search(call: Call) -> Response:
    store = call.service.catalogue.store(call.caller, call.path["store_id"])
    question = call.parse(Search).question()
    hits = call.service.searcher.search([store], question, call.caller.client)
    return reply(shapes.results(question.queries, hits))


def internal_search(call: Call) -> Response:
    """The page of a search, and ``passages``: the text for the model.

    A persona's stores are granted by the tower file to whoever may use the persona; stores that the client names itself
    must be its own or shared with it.
    """
    body = call.parse(InternalSearch)
    caller = client_of_gateway(body.client, body.key)
    stores = call.service.catalogue.named_stores(body.stores)
    stores += [call.service.catalogue.store(caller, one) for one in body.vector_store_ids]
    unique = list({store.id: store for store in stores}.values())
    question = body.question()
    found = call.service.searcher.search(unique, question, body.client)
    page = shapes.results(question.queries, found)
    return reply(page | {"passages": citations.passages(page["data"])})


ROUTES: list[tuple[str, str, Handler]] = [("POST", "/vector_stores/{store_id}/search", search)]
