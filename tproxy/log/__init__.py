"""Where log lines go: a logger that loads late, files that survive rotation, and their set-up."""
