"""What may be sent: validated bytes from a caller's fields. No I/O."""
