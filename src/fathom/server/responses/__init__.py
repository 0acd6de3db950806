"""OpenAI's /v1/responses: a conversation in items, answers that are kept, events by name."""
