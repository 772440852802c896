"""The worker: a process without rights in the root namespace that dials endpoints and carries the bytes."""
