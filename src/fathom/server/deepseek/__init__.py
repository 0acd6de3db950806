"""DeepSeek's own API where it is not OpenAI's; `routes.py` has the paths that the two share."""
