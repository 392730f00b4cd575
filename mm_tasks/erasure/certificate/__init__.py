"""The receipt of an erasure, to hand to the person or to an authority.

`issuing` is the way in. It reads the log by `evidence`, which verifies it first; `facts` are read
from the erasure's entries alone, so that each sentence can be checked against the log. `person`
and `authority` put them into the words of `en.toml` or `de.toml`, and `layout` onto a page.
"""
