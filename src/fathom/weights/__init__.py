"""Bytes: open, check, quantise and write checkpoints against the parameter table.

May import `spec`, `ops` (quant) and L0 only. safetensors and JSON, nothing that can run code.
"""
