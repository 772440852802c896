"""Reads facts from kernel, files and processes, and judges none of them. A module returns a named tuple."""
