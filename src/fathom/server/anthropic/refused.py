"""Fields and values of Anthropic's API that are known but not honoured."""

from __future__ import annotations

from fathom.server.decode import Refusals, Refused

_NO_CODE = Refused("nothing is run on the server")

OF_MESSAGES = Refusals(
    top={
        "container": _NO_CODE,
        "mcp_servers": Refused("the server reaches no network", ([],)),
        "service_tier": Refused("there is one tier", ("auto", "standard_only")),
        "speed": Refused("there is one speed", ("standard",)),
        "inference_geo": Refused("the server stands where it stands"),
        "diagnostics": Refused("the cache's misses are not explained"),
        "user_profile_id": Refused("there are no profiles"),
    },
    inner={
        "output_config": {"task_budget": Refused("answers are not planned by a budget")},
        "tools": {
            "input_examples": Refused("the templates show no examples", ([],)),
            "defer_loading": Refused("every tool is shown", (False,)),
            "allowed_callers": Refused(_NO_CODE.why, (["direct"], [])),
        },
    },
)

OF_BLOCKS = Refusals(
    top={
        "citations": Refused("the models cite nothing", ([],)),
        "caller": Refused(_NO_CODE.why, ({"type": "direct"},)),
        "toolset_name": Refused("there are no toolsets"),
        "cache_control": Refused("such a block cannot be marked"),
    }
)
