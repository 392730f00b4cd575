"""What is going on: status, health, checks, metrics and the form of log lines."""
