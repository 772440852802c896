"""The gateway: what clients outside reach, and what leads them to routes."""
