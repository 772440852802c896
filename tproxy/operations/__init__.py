"""The operations that operators and drivers ask for, one a module: hook, refresh, life cycle, gc, sync."""
