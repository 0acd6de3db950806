"""Bytes: open, verify and make checkpoints against the parameter table.

May import `spec`, `ops` (quant) and L0 only. safetensors and JSON, nothing that can run code.
"""
