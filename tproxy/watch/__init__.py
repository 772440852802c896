"""The watcher: one process that brings bridges up and down with their guests, and repairs what breaks."""
