"""Turns facts into findings. Pure. The findings of a module are in the order from cause to effect."""
