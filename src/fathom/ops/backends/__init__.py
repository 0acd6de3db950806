"""Kernel backends, one folder each."""
