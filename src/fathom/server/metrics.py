"""Metrics in Prometheus' text format, under vLLM's names, so that its dashboards work unchanged.

Counters and histograms live in this process and are stepped where an answer passes; gauges and
the engine's own counters are read when a scrape comes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from fathom.core.types import CoreStats
from fathom.spec.plan import DeploymentPlan, RemotePlan

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# vLLM's buckets, in seconds and in tokens.
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = (1.0, *(float(8 << i) for i in range(12)))
_CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
_PREFIX = "vllm:"
_FINISH_REASONS = ("stop", "length", "repetition", "tool_calls", "abort", "error")

_HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...] | None]] = {
    "time_to_first_token_seconds": ("Time to the first token", _FIRST_TOKEN_S),
    "inter_token_latency_seconds": ("Time between the tokens of an answer", _BETWEEN_TOKENS_S),
    "request_time_per_output_token_seconds": (
        "Mean time between tokens of a request",
        _BETWEEN_TOKENS_S,
    ),
    "e2e_request_latency_seconds": ("Time from arrival to the last token", _REQUEST_S),
    "request_queue_time_seconds": ("Time from arrival to the first step", _REQUEST_S),
    "request_prefill_time_seconds": ("Time from the first step to the first token", _REQUEST_S),
    "request_decode_time_seconds": ("Time from the first token to the last", _REQUEST_S),
    "request_inference_time_seconds": ("Time from the first step to the last token", _REQUEST_S),
    "request_prompt_tokens": ("Tokens of a prompt", None),
    "request_generation_tokens": ("Tokens of an answer", None),
    "request_max_num_generation_tokens": ("Tokens of a request's longest answer", None),
    "request_prefill_kv_computed_tokens": ("Tokens of a prompt that were computed", None),
    "iteration_tokens_total": ("Tokens computed in a step", _STEP_TOKENS),
    "request_params_n": ("The parameter n", _CHOICES),
    "request_params_max_tokens": ("The parameter max_tokens", None),
}
_COUNTERS: Mapping[str, str] = {
    "prompt_tokens_cached": "Tokens of prompts whose KV came from the prefix cache",
    "admission_rejections": "Requests refused because the queue was full",
    "volatile_prompt_headers": "Prompts that began with a line that changes every time, left out",
}


class Histogram:
    """Counts by upper bound, with sum and count."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Metrics:
    """The server's metrics. `plan` is known once the engine is ready."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = dict.fromkeys(_COUNTERS, 0.0)
        self.finished: dict[str, int] = dict.fromkeys(_FINISH_REASONS, 0)
        self.histograms: dict[str, Histogram] = {}
        self.set_context(4096)

    def set_context(self, max_model_len: int) -> None:
        """Fit the buckets of token counts to the model; before anything is observed."""
        tokens = token_buckets(max_model_len)
        self.histograms = {
            name: Histogram(bounds or tokens) for name, (_, bounds) in _HISTOGRAMS.items()
        }

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """Step histogram `name`."""
        self.histograms[name].observe(value, times)

    def render(self, stats: CoreStats | None, plan: DeploymentPlan | RemotePlan | None) -> bytes:
        """The exposition. `stats` None: the engine is not there, and its gauges are left out."""
        model = plan.served_names[0] if plan is not None else ""
        labels = {"model_name": model, "engine": "0"}
        lines: list[str] = []
        if stats is not None:
            _render_engine(lines, stats, labels)
        if isinstance(plan, DeploymentPlan):
            _render_plan(lines, plan, labels)
        for name, doc in _COUNTERS.items():
            _family(lines, name, "counter", doc, [(f"{name}_total", labels, self.counters[name])])
        _family(
            lines,
            "request_success",
            "counter",
            "Answers ended, by reason",
            [
                ("request_success_total", {**labels, "finished_reason": reason}, count)
                for reason, count in self.finished.items()
            ],
        )
        for name, (doc, _) in _HISTOGRAMS.items():
            _family(lines, name, "histogram", doc, _samples(name, self.histograms[name], labels))
        return ("\n".join(lines) + "\n").encode()


def token_buckets(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `largest`."""
    bounds: list[float] = []
    decade = 1
    while decade <= largest:
        bounds += [float(m * decade) for m in (1, 2, 5) if m * decade <= largest]
        decade *= 10
    return tuple(bounds)


Sample = tuple[str, Mapping[str, str], float]


def _render_engine(lines: list[str], stats: CoreStats, labels: Mapping[str, str]) -> None:
    gauges = {
        "num_requests_running": ("Sequences in the batch", stats.running),
        "num_requests_waiting": ("Sequences that wait", stats.waiting),
        "kv_cache_usage_perc": ("Share of KV pages in use, 0 to 1", stats.kv_usage),
    }
    counters = {
        "prompt_tokens": ("Tokens of prompts", stats.prompt_tokens),
        "generation_tokens": ("Tokens generated", stats.generated_tokens),
        "prefix_cache_queries": ("Tokens looked up in the prefix cache", stats.prefix_queries),
        "prefix_cache_hits": ("Tokens found in the prefix cache", stats.prefix_hits),
        "num_preemptions": ("Sequences put back to wait", stats.preemptions),
        "spec_decode_num_drafts": ("Drafts, of one or more tokens each", stats.draft_rounds),
        "spec_decode_num_draft_tokens": ("Tokens drafted", stats.draft_tokens),
        "forced_tokens": ("Tokens that a grammar forced, without a step", stats.forced_tokens),
        "spec_decode_num_accepted_tokens": ("Drafted tokens accepted", stats.accepted_tokens),
    }
    # One reason is known here: no room in the batch or in the page pool.
    waiting = [("num_requests_waiting_by_reason", {**labels, "reason": "capacity"}, stats.waiting)]
    _family(
        lines, "num_requests_waiting_by_reason", "gauge", "Sequences that wait, by why", waiting
    )
    for name, (doc, value) in gauges.items():
        _family(lines, name, "gauge", doc, [(name, labels, value)])
    for name, (doc, value) in counters.items():
        _family(lines, name, "counter", doc, [(f"{name}_total", labels, value)])


def _render_plan(lines: list[str], plan: DeploymentPlan, labels: Mapping[str, str]) -> None:
    facts = {
        "block_size": str(plan.page_size),
        "num_gpu_blocks": str(plan.num_pages),
        "cache_dtype": plan.kv_dtype.name,
        "enable_prefix_caching": str(plan.prefix_cache),
        "engine": labels["engine"],
    }
    doc = "Settings of the KV cache"
    _family(lines, "cache_config_info", "gauge", doc, [("cache_config_info", facts, 1)])


def _samples(name: str, histogram: Histogram, labels: Mapping[str, str]) -> Iterable[Sample]:
    total = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        total += count
        upper = "+Inf" if bound is None else repr(bound)
        yield f"{name}_bucket", {**labels, "le": upper}, total
    yield f"{name}_count", labels, total
    yield f"{name}_sum", labels, histogram.sum


def _family(lines: list[str], name: str, kind: str, doc: str, samples: Iterable[Sample]) -> None:
    # The text format of Prometheus 0.0.4 names a counter's family with its _total.
    family = f"{_PREFIX}{name}_total" if kind == "counter" else f"{_PREFIX}{name}"
    lines += (f"# HELP {family} {doc}.", f"# TYPE {family} {kind}")
    for sample, labels, value in samples:
        text = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        lines.append(f"{_PREFIX}{sample}{{{text}}} {value:.12g}")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
