"""Connects to a bridge's services as a guest does, from a guest that is there for some seconds."""
