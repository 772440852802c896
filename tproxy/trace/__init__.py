"""Follows the attempts of one guest to reach a service, live: what its frames met, and what became of them."""
