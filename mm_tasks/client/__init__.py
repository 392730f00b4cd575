"""The vendor's HTTP API: a request in, a classified outcome out. Knows no Redis."""
