"""Events: validation of a caller's fields, encoded to the bytes that are sent. No I/O."""
