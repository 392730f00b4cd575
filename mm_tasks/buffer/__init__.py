"""Where events wait: everything that is stored in Redis. `keys` and `lua/` are its schema."""
