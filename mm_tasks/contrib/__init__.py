"""Bridges to other people's frameworks. None is imported unless it is asked for by name."""
