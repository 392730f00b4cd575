"""The tamper-evident log of erasures and the tables beside it."""
