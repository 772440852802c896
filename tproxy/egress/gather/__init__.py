"""Gathers what a list names, with all that it depends on, into the store.

Dependencies are resolved by the clients themselves: pip, apt and ansible-galaxy run against a private port of
a mirror, and what they fetch there is what belongs to the list. ``lists`` reads lists, ``engines`` runs the
clients, ``gathering`` puts both together.
"""
