"""Integrations with web frameworks. Each is imported only by name."""
