"""The command line: click commands, exit codes and the views that print status. It decides nothing itself."""
