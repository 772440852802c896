"""Virtualization platforms: installs our files for each of them, and turns its events into hook calls."""
