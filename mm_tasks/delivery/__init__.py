"""From the buffer to the vendor: one batch gets a slot, is sent and is settled."""
