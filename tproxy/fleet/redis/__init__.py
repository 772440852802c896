"""Reads services of a running TCP router from its redis, so that they become routes. Writes nothing there."""
