"""Another server's HTTP API in the engine's place: what `fathom proxy` asks."""
