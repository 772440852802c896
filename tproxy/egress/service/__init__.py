"""Runs the egress on a node: prepares files, and starts and stops its parts, alone or with systemd."""
