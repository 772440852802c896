"""The daemon that keeps relays, service maps and guards in line, and the client that asks it."""
