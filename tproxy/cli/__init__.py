"""The command line: click commands, exit codes and the views that print status. Decides nothing itself."""
