"""Observes, plans and changes what one bridge has on the host: service map, guards, links and namespace."""
