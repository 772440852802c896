"""Follows one guest's attempts to reach services: what its frames met, and what became of them."""
