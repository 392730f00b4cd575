"""Forget a person: request, fence, purge, calls to the vendor, proof."""
