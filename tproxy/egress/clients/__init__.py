"""Sets up the machines that use the egress: a script that does it, one that checks it, and their server."""
