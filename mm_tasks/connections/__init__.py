"""How Redis is reached: forms of URL, pools, Sentinel, asyncio."""
