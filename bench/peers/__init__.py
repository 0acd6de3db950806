"""Compares fathom with other engines on one machine, in one run: `python -m bench.peers`."""
