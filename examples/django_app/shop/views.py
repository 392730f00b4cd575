"""Pages that track: url, path, referrer and anonymous_id come from the middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse

from mm_tasks import track
from shop.models import Order

if TYPE_CHECKING:
    from collections.abc import Iterator


def pricing(_: HttpRequest) -> JsonResponse:
    """Track at once; return the id of the event."""
    return JsonResponse({"id": track.delay("pricing_viewed").id})


async def apricing(_: HttpRequest) -> JsonResponse:
    """Track without blocking the event loop of an ASGI server."""
    return JsonResponse({"id": (await track.adelay("pricing_viewed")).id})


def buy(request: HttpRequest) -> JsonResponse:
    """Track when the order is committed."""
    with transaction.atomic():
        order = Order.objects.create(cents=4900)
        properties = {"cents": order.cents, "currency": "EUR"}
        planned = track.delay_on_commit("order_placed", properties=properties)
        if "fail" in request.GET:
            transaction.set_rollback(True)
    return JsonResponse({"id": planned.id, "orders": Order.objects.count()})


def export(_: HttpRequest) -> StreamingHttpResponse:
    """Track from within a stream."""

    def rows() -> Iterator[str]:
        yield "cents\n"
        yield from (f"{order.cents}\n" for order in Order.objects.all()[:10])
        track.delay("orders_exported")

    return StreamingHttpResponse(rows(), content_type="text/csv")


def healthz(_: HttpRequest) -> JsonResponse:
    """Answer the load balancer; the middleware skips this path."""
    return JsonResponse({"ok": True})
