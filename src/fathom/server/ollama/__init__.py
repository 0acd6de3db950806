"""Ollama's dialect: /api/chat, /api/generate and what lists models; streams of JSON lines."""
