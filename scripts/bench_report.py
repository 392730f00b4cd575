"""The one form in which every benchmark reports: a figure, its bound, and whether it was kept."""

from __future__ import annotations


def report(what: str, found: float, sign: str, bound: float) -> bool:
    """Print one line and return the verdict; `sign` is `<=` or `>=`."""
    assert sign in {"<=", ">="}, sign
    is_kept = found <= bound if sign == "<=" else found >= bound
    verdict = "kept" if is_kept else "BROKEN"
    print(f"{what:44} {found:12,.2f}  {sign} {bound:,}  {verdict}", flush=True)
    return is_kept
