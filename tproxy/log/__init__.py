"""Logging: a logger that imports ``logging`` late, files that survive rotation, and their set-up."""
