"""The process in a bridge's namespace that accepts connections: how it starts, what it tells the daemon."""
