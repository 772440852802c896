"""What carries bytes between a guest and an endpoint. Knows no nftables, relay or namespace."""
