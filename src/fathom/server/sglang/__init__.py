"""SGLang's own dialect: /generate, /get_model_info, /flush_cache."""
