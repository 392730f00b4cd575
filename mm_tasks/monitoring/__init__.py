"""Monitoring of a running project: status, rates, health, checks, metrics, format of logs."""
