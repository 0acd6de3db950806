"""What was asked of `fathom bench serve` besides the load: server, sampling and results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fathom.commands.bench_config import BACKENDS
from fathom.config import check_setting, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """Which server, and in which dialect."""

    backend: str = setting(
        "openai", "The API of the server.", "--backend", wanted=", ".join(BACKENDS)
    )
    base_url: str | None = setting(
        None, "URL of the server, instead of --host and --port.", "--base-url"
    )
    host: str = setting("127.0.0.1", "Host of the server.", "--host")
    port: int = setting(8000, "Its port.", "--port")
    endpoint: str | None = setting(
        None,
        "Path; /v1/completions or /v1/chat/completions, by the backend, where not given.",
        "--endpoint",
    )
    model: str | None = setting(
        None, "Name of the model; the server's first where not given.", "--model"
    )
    served_model_name: str | None = setting(
        None, "Its name in the API, where that differs.", "--served-model-name"
    )
    tokenizer: str | None = setting(
        None,
        "Directory of the tokenizer; --model where that is one, else the server is asked.",
        "--tokenizer",
    )
    api_key: str | None = setting(
        None, "Key of the server; FATHOM_API_KEY where not given.", "--api-key"
    )
    header: tuple[str, ...] = setting((), "KEY=VALUE headers of every request.", "--header")
    verify_tls: bool = setting(True, "Check the server's certificate.", "--verify-tls")
    request_id_prefix: str = setting(
        "bench-", "What X-Request-Id begins with.", "--request-id-prefix"
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

    temperature: float | None = setting(None, "Sampling temperature.", "--temperature")
    top_p: float | None = setting(None, "Nucleus.", "--top-p")
    top_k: int | None = setting(None, "Likeliest tokens.", "--top-k")
    min_p: float | None = setting(None, "Least share of the likeliest.", "--min-p")
    frequency_penalty: float | None = setting(None, "Frequency penalty.", "--frequency-penalty")
    presence_penalty: float | None = setting(None, "Presence penalty.", "--presence-penalty")
    repetition_penalty: float | None = setting(None, "Repetition penalty.", "--repetition-penalty")
    logprobs: int | None = setting(None, "Likeliest tokens to give at each position.", "--logprobs")
    ignore_eos: bool = setting(False, "Answers go on to their full length.", "--ignore-eos")
    extra_body: str | None = setting(
        None, "JSON object of more fields for every body.", "--extra-body", "--extra-request-body"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultConfig:
    """What is shown and kept."""

    percentile_metrics: str = setting(
        "ttft,tpot,itl,e2el,schedule_delay",
        "Metrics to show, with commas between.",
        "--percentile-metrics",
    )
    metric_percentiles: str = setting(
        "99", "Percentiles of each, with commas between.", "--metric-percentiles"
    )
    goodput: tuple[str, ...] = setting(
        (), "Limits such as ttft:200 tpot:50 e2el:3000, in milliseconds.", "--goodput"
    )
    save_result: bool = setting(False, "Write the results to a JSON file.", "--save-result")
    save_detailed: bool = setting(
        False, "Put every request into it, answers too.", "--save-detailed"
    )
    append_result: bool = setting(
        False, "Add the results to the file as a line.", "--append-result"
    )
    result_dir: str | None = setting(None, "Directory of that file.", "--result-dir")
    result_filename: str | None = setting(
        None, "Its name; made of label, rate, model and time.", "--result-filename"
    )
    metadata: tuple[str, ...] = setting((), "KEY=VALUE to keep with the results.", "--metadata")
    progress: bool = setting(True, "Say on a terminal how far the run is.", "--progress")
    label: str | None = setting(None, "Name of the run; the backend where not given.", "--label")

    def __post_init__(self) -> None:
        for pair in self.metadata:
            check_setting(ResultConfig, "metadata", "=" in pair, pair, "KEY=VALUE")
