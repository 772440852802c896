"""Metrics for Prometheus: what they are called, where they come from, and the process that serves them."""
