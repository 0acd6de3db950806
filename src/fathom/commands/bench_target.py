"""What was asked of `fathom bench serve` besides the load: server, sampling and results."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from fathom.commands.bench_config import BACKENDS
from fathom.config import check_setting, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """Which server, and in which dialect."""

    backend: str = field(
        default="openai",
        metadata=setting("The API of the server.", "--backend", wanted=", ".join(BACKENDS)),
    )
    base_url: str | None = field(
        default=None,
        metadata=setting("URL of the server, instead of --host and --port.", "--base-url"),
    )
    host: str = field(default="127.0.0.1", metadata=setting("Host of the server.", "--host"))
    port: int = field(default=8000, metadata=setting("Its port.", "--port"))
    endpoint: str | None = field(
        default=None,
        metadata=setting(
            "Path; /v1/completions or /v1/chat/completions, by the backend, where not given.",
            "--endpoint",
        ),
    )
    model: str | None = field(
        default=None,
        metadata=setting("Name of the model; the server's first where not given.", "--model"),
    )
    served_model_name: str | None = field(
        default=None,
        metadata=setting("Its name in the API, where that differs.", "--served-model-name"),
    )
    tokenizer: str | None = field(
        default=None,
        metadata=setting(
            "Directory of the tokenizer; --model where that is one, else the server is asked.",
            "--tokenizer",
        ),
    )
    api_key: str | None = field(
        default=None,
        metadata=setting("Key of the server; FATHOM_API_KEY where not given.", "--api-key"),
    )
    header: tuple[str, ...] = field(
        default=(), metadata=setting("KEY=VALUE headers of every request.", "--header")
    )
    verify_tls: bool = field(
        default=True, metadata=setting("Check the server's certificate.", "--verify-tls")
    )
    request_id_prefix: str = field(
        default="bench-",
        metadata=setting("What X-Request-Id begins with.", "--request-id-prefix"),
    )

    def __post_init__(self) -> None:
        check = partial(check_setting, TargetConfig)
        check("backend", self.backend in BACKENDS, self.backend, f"one of {', '.join(BACKENDS)}")
        check("port", 1 <= self.port <= 65535, self.port, "1 to 65535")
        path = self.endpoint
        check("endpoint", path is None or path.startswith("/"), path, "a path that begins with /")
        for pair in self.header:
            check("header", "=" in pair, pair, "KEY=VALUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """What the bodies of requests say; what is not given is not sent."""

    temperature: float | None = field(
        default=None, metadata=setting("Sampling temperature.", "--temperature")
    )
    top_p: float | None = field(default=None, metadata=setting("Nucleus.", "--top-p"))
    top_k: int | None = field(default=None, metadata=setting("Likeliest tokens.", "--top-k"))
    min_p: float | None = field(
        default=None, metadata=setting("Least share of the likeliest.", "--min-p")
    )
    frequency_penalty: float | None = field(
        default=None, metadata=setting("Frequency penalty.", "--frequency-penalty")
    )
    presence_penalty: float | None = field(
        default=None, metadata=setting("Presence penalty.", "--presence-penalty")
    )
    repetition_penalty: float | None = field(
        default=None, metadata=setting("Repetition penalty.", "--repetition-penalty")
    )
    logprobs: int | None = field(
        default=None, metadata=setting("Likeliest tokens to give at each position.", "--logprobs")
    )
    ignore_eos: bool = field(
        default=False,
        metadata=setting("Answers go on to their full length.", "--ignore-eos"),
    )
    extra_body: str | None = field(
        default=None,
        metadata=setting(
            "JSON object of more fields for every body.", "--extra-body", "--extra-request-body"
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultConfig:
    """What is shown and kept."""

    percentile_metrics: str = field(
        default="ttft,tpot,itl,e2el,schedule_delay",
        metadata=setting("Metrics to show, with commas between.", "--percentile-metrics"),
    )
    metric_percentiles: str = field(
        default="99",
        metadata=setting("Percentiles of each, with commas between.", "--metric-percentiles"),
    )
    goodput: tuple[str, ...] = field(
        default=(),
        metadata=setting(
            "Limits such as ttft:200 tpot:50 e2el:3000, in milliseconds.", "--goodput"
        ),
    )
    save_result: bool = field(
        default=False, metadata=setting("Write the results to a JSON file.", "--save-result")
    )
    save_detailed: bool = field(
        default=False,
        metadata=setting("Put every request into it, answers too.", "--save-detailed"),
    )
    append_result: bool = field(
        default=False,
        metadata=setting("Add the results to the file as a line.", "--append-result"),
    )
    result_dir: str | None = field(
        default=None, metadata=setting("Directory of that file.", "--result-dir")
    )
    result_filename: str | None = field(
        default=None,
        metadata=setting("Its name; made of label, rate, model and time.", "--result-filename"),
    )
    metadata: tuple[str, ...] = field(
        default=(), metadata=setting("KEY=VALUE to keep with the results.", "--metadata")
    )
    progress: bool = field(
        default=True,
        metadata=setting("Say on a terminal how far the run is.", "--progress"),
    )
    label: str | None = field(
        default=None, metadata=setting("Name of the run; the backend where not given.", "--label")
    )

    def __post_init__(self) -> None:
        for pair in self.metadata:
            check_setting(ResultConfig, "metadata", "=" in pair, pair, "KEY=VALUE")
