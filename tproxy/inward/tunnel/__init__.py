"""Tunnels: hosts without public addresses dial out to the gateway, and are reached through it.

A *node* is a host that keeps an SSH connection to the gateway, a *link*. On it the node makes *offers*: ports
and sockets of its own, each with a name. An *operator* is a person who may use offers. A *stream* is one
connection that somebody makes to an offer.

Modules that say so in their docstring need the extra ``inward`` (asyncssh); the others need nothing.
"""
