"""The configuration file: its language, what it means for a network, and what is wrong with it."""
