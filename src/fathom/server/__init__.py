"""HTTP: one folder a dialect, and what all share; the chat page, metrics.

May import `spec`, `core` (types), `text`, `engine` and L0 only, and never torch.
"""
