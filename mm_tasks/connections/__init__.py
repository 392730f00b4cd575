"""Connections to Redis: URLs, clients, sentinels, asyncio."""
