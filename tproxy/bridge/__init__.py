"""What one bridge has on the host: service map, guards, links, namespace. Observed, planned, carried out."""
