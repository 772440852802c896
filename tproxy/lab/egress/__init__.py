"""The tour of the egress: sites of all kinds that the lab makes itself, and guests that install from them."""
