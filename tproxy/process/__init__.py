"""The processes of one instance: their directory and lock, their titles, how to find and end them."""
