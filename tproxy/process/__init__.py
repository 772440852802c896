"""The processes of one instance: their directory and lock, their titles, and how to find and end them."""
