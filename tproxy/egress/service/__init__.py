"""Runs the egress on a node: prepares files, starts and stops the engines, in the foreground or with systemd."""
