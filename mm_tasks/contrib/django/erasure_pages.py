"""The pages of erasures in Django's admin, built on `mm_tasks.erasures`.

Each page needs a right, which `MM_TASKS_ERASURES_ALLOWED` decides. The id of a person is read from
the body of a POST alone: it is in no URL, no redirect, no message and no report of an error.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from redis.exceptions import RedisError

import mm_tasks
from mm_tasks import runtime
from mm_tasks.contrib.django.conf import may
from mm_tasks.errors import InvalidEvent, MMTasksError

if TYPE_CHECKING:
    from collections.abc import Callable

LIST, REQUEST = "mm_tasks_erasures", "mm_tasks_erasure_request"
_ONE, _ACT, _RECEIPT, _FIND = (
    f"mm_tasks_erasure_{name}" for name in ("one", "act", "receipt", "find")
)
_PAGE = 50
# Of 2 000 records each.
_SCAN_STEPS = 20
_UNAVAILABLE = 503
# The first of each is the default.
_RECEIPTS = {"audience": ("authority", "person"), "language": ("en", "de")}
_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
}
_EFFECTS = {
    "cancel": "The vendor is not called, and events of this person are accepted again. Events that "
    "were removed stay removed.",
    "lift": "Events of this person are accepted again, unless another erasure of them is open.",
    "retry": "The vendor is called again with the next sweep of a worker.",
}


def urls(site: Any) -> list[Any]:
    """Return the URLs of the pages, below the admin site's own."""
    pages: list[tuple[str, Callable[..., Any], str, str | None]] = [
        ("", _list, LIST, "view"),
        ("request/", _request, REQUEST, "request"),
        ("find/", _find, _FIND, "view"),
        ("<uuid:erasure>/", _one, _ONE, "view"),
        ("<uuid:erasure>/receipt/", _receipt, _RECEIPT, "view"),
        ("<uuid:erasure>/<str:action>/", _act, _ACT, None),
    ]
    return [
        path(f"mm_tasks/erasures/{route}", _guarded(site, view, right), name=name)
        for route, view, name, right in pages
    ]


def _guarded(site: Any, view: Callable[..., Any], right: str | None) -> Any:
    """Return a view of the admin that needs a right; None is that of its `action`."""

    def guarded(request: Any, **arguments: Any) -> Any:
        if not may(request.user, right or arguments["action"]):
            raise PermissionDenied
        arguments = {name: str(value) for name, value in arguments.items()}
        try:
            return view(partial(_page, site, request), request, **arguments)
        except MMTasksError as error:
            # No message of these errors holds a value.
            return _page(site, request, "error", "Erasures", status=_UNAVAILABLE, error=error)

    return site.admin_view(sensitive_post_parameters()(sensitive_variables()(guarded)))


def _page(
    site: Any, request: Any, template: str, title: str, *, status: int = 200, **context: Any
) -> Any:
    request.current_app = site.name
    shown = {**site.each_context(request), "title": title, **context}
    return TemplateResponse(request, f"admin/mm_tasks/{template}.html", shown, status=status)


def _redirect(request: Any, erasure: str) -> Any:
    return HttpResponseRedirect(_url(request, _ONE, erasure))


def _url(request: Any, name: str, *arguments: str) -> str:
    namespace = request.resolver_match.namespace
    return str(reverse(f"{namespace}:{name}", args=arguments))


def _list(page: Callable[..., Any], request: Any) -> Any:
    from mm_tasks.erasures import STATES

    ticket, number = request.GET.get("ticket", ""), request.GET.get("page", "")
    state = next((one for one in STATES if one == request.GET.get("state")), None)
    number = max(1, int(number)) if re.fullmatch(r"\d{1,6}", number) else 1
    start = _PAGE * (number - 1)
    found = mm_tasks.erasures.list(
        ticket=ticket or None, state=state, limit=_PAGE + 1, offset=start
    )
    return page(
        "erasures",
        "Erasures",
        erasures=found[:_PAGE],
        states=STATES,
        state=state,
        ticket=ticket,
        previous=number - 1,
        following=number + 1 if len(found) > _PAGE else None,
    )


def _find(page: Callable[..., Any], request: Any) -> Any:
    from mm_tasks.contrib.django.erasure_forms import FindForm

    form = FindForm(request.POST or None)
    found = mm_tasks.erasures.find(form.cleaned_data["user_id"]) if form.is_valid() else None
    return page("erasure_find", "Find the erasures of a person", form=form, erasures=found)


def _request(page: Callable[..., Any], request: Any) -> Any:
    from mm_tasks.contrib.django.erasure_forms import RequestForm

    form = RequestForm(request.POST or None, initial={"requested_by": _reference(request.user)})
    title = "Request an erasure"
    if not form.is_valid() or "change" in request.POST:
        return page("erasure_request", title, form=form)
    if "confirmed" not in request.POST:
        asked = form.arguments()
        return page("erasure_confirm_request", title, form=form, asked=asked, traces=_traces(asked))
    try:
        receipt = mm_tasks.forget.delay(**form.arguments())
    except InvalidEvent as error:
        for problem in error.problems:
            form.add_error(problem.field, problem.rule)
        return page("erasure_request", title, form=form)
    if receipt.fenced:
        messages.success(request, "Accepted: events of this person are refused from now on.")
    else:
        messages.warning(request, "Accepted: the next sweep of a worker raises the fence.")
    return _redirect(request, receipt.id)


def _one(page: Callable[..., Any], request: Any, erasure: str) -> Any:
    found = _found(erasure)
    actions = [action for action in found.actions if may(request.user, action)]
    timeline = mm_tasks.erasures.timeline(erasure)
    return page("erasure", f"Erasure {erasure}", erasure=found, timeline=timeline, actions=actions)


def _receipt(page: Callable[..., Any], request: Any, erasure: str) -> Any:
    _found(erasure)
    chosen: dict[str, Any] = {
        name: next((one for one in choices if one == request.GET.get(name)), choices[0])
        for name, choices in _RECEIPTS.items()
    }
    form: Any = request.GET.get("form")
    if form not in _CONTENT_TYPES:
        title, text = f"Receipt of erasure {erasure}", mm_tasks.erasures.receipt(erasure, **chosen)
        forms = list(_CONTENT_TYPES)
        return page("erasure_receipt", title, text=text, choices=_RECEIPTS, forms=forms, **chosen)
    receipt = mm_tasks.erasures.receipt(erasure, form=form, **chosen)
    suffix = "txt" if form == "text" else form
    name = f"erasure-{erasure}-{chosen['audience']}-{chosen['language']}.{suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return HttpResponse(receipt, content_type=_CONTENT_TYPES[form], headers=headers)


def _act(page: Callable[..., Any], request: Any, erasure: str, action: str) -> Any:
    from mm_tasks.contrib.django.erasure_forms import ByForm
    from mm_tasks.erasures import Action

    if action not in get_args(Action):
        raise Http404
    found = _found(erasure)
    form = ByForm(request.POST or None, initial={"requested_by": _reference(request.user)})
    if form.is_valid():
        act = getattr(mm_tasks.erasures, action)
        try:
            act(erasure, requested_by=form.cleaned_data["requested_by"])
        except InvalidEvent as error:
            for problem in error.problems:
                form.add_error(problem.field, problem.rule)
        except mm_tasks.errors.ErasureStateError as error:
            messages.error(request, f"Refused: {error}.")
            return _redirect(request, erasure)
        else:
            messages.success(request, f"Done: {action}.")
            return _redirect(request, erasure)
    title = f"{action.capitalize()} erasure {erasure}?"
    return page(
        "erasure_act", title, form=form, erasure=found, action=action, effect=_EFFECTS[action]
    )


def _traces(asked: dict[str, Any]) -> Any:
    """Return what is here of the person, after a short search; None if Redis is away."""
    finder = runtime.current().traces
    try:
        return finder.scan(asked["user_id"], asked["anonymous_ids"] or (), steps_max=_SCAN_STEPS)
    except RedisError:
        return None


def _found(erasure: str) -> Any:
    found = mm_tasks.erasures.get(erasure)
    if found is None:
        raise Http404
    return found


def _reference(user: Any) -> str:
    """Return a reference of a user: a name or an e-mail address may not enter the log."""
    return f"staff-{user.pk}"
