"""What operators and drivers ask for, an operation a module: hook, refresh, life cycle, gc, sync."""
