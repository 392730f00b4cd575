"""Backfill from files: rows are read, validated and stored in chunks, each chunk once."""
