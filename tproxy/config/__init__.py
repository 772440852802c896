"""The configuration file: finds and reads it, chooses each network's services, and finds its problems."""
