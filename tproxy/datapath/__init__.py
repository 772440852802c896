"""Carries bytes between guests and endpoints. It knows nothing of bridges, nftables, relays or namespaces."""
