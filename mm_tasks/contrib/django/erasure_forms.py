"""The forms of the erasure pages. No id is stripped or changed, and no error repeats one."""

from __future__ import annotations

from typing import Any

from django import forms

from mm_tasks.erasure.request import MODES, SUPPRESS, Reason
from mm_tasks.erasure.slips import slip

_SLIP = "There is {}. Delete it, or check “exactly as typed”."
_GROUNDS = [("", "not stated"), *((str(reason), str(reason)) for reason in Reason)]


class ByForm(forms.Form):  # type: ignore[misc] # Django ships no types
    """The reference of the person who asks for an action."""

    requested_by = forms.CharField(
        max_length=128, help_text="An opaque reference, kept for ever: no name, no e-mail address."
    )


class FindForm(forms.Form):  # type: ignore[misc] # Django ships no types
    """The id of a person whose erasures are sought."""

    user_id = forms.CharField(
        strip=False, label="User id", widget=forms.TextInput(attrs={"autocomplete": "off"})
    )


class RequestForm(FindForm, ByForm):
    """A request for erasure."""

    anonymous_ids = forms.CharField(
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="One a line.",
    )
    exact = forms.BooleanField(required=False, label="Take the ids exactly as typed")
    ticket = forms.CharField(required=False, help_text="Your reference of the request.")
    reason = forms.ChoiceField(required=False, choices=_GROUNDS, label="Legal ground")
    mode = forms.ChoiceField(
        choices=[(mode, mode) for mode in MODES],
        initial=SUPPRESS,
        help_text="suppress: later events of this person are refused, until you lift the fence. "
        "once: they are accepted after the erasure.",
    )
    field_order = ("user_id", "anonymous_ids", "exact", "ticket", "requested_by", "reason", "mode")

    def clean(self) -> None:
        """Refuse ids with characters that nobody sees, such as a pasted trailing blank."""
        if self.cleaned_data.get("exact"):
            return
        for name in ("user_id", "anonymous_ids"):
            for found in filter(None, map(slip, _lines(self.cleaned_data.get(name, "")))):
                self.add_error(name, _SLIP.format(found))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `forget`; what was left empty was not given."""
        names = ("user_id", "requested_by", "ticket", "reason", "mode")
        values = {name: self.cleaned_data[name] or None for name in names}
        return {**values, "anonymous_ids": _lines(self.cleaned_data["anonymous_ids"]) or None}


def _lines(text: str) -> list[str]:
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]
