"""Hypervisors that use an egress node elsewhere: their certificates, and TLS between them and the node.

HAProxy encrypts and checks certificates on both sides. Behind it, the gate of the node checks that a host
claims only networks that its certificate lists.
"""
