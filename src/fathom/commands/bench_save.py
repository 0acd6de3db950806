"""What of a benchmark is shown, by its flags, and the files that keep it."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from fathom.commands.bench_config import DatasetConfig
from fathom.commands.bench_target import ResultConfig, TargetConfig
from fathom.commands.bench_traffic import TrafficConfig
from fathom.commands.files import write_file
from fathom.errors import ConfigError
from fathom.perf.report import METRICS, PER_REQUEST
from fathom.perf.result import Wanted

_LIMITED = ("ttft", "tpot", "e2el")


def wanted_of(results: ResultConfig) -> Wanted:
    """Metrics, percentiles and limits. Raises: ConfigError."""
    metrics = tuple(one.strip() for one in results.percentile_metrics.split(",") if one.strip())
    for one in metrics:
        if one not in METRICS:
            raise ConfigError("--percentile-metrics", found=one, wanted=", ".join(METRICS))
    percents = tuple(
        _number("--metric-percentiles", one, 100.0)
        for one in results.metric_percentiles.split(",")
        if one.strip()
    )
    limits = []
    for pair in results.goodput:
        name, colon, value = pair.partition(":")
        if not colon or name not in _LIMITED:
            raise ConfigError("--goodput", found=pair, wanted=f"one of {', '.join(_LIMITED)}:MS")
        assert name in PER_REQUEST
        limits.append((name, _number("--goodput", value, math.inf) / 1000.0))
    return Wanted(metrics=metrics, percents=percents, goodput_s=tuple(limits))


def _number(name: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        wanted = "0 or more" if math.isinf(most) else f"0 to {most:g}"
        raise ConfigError(name, found=text, wanted=f"a number, {wanted}")
    return value


def save(
    told: dict[str, Any],
    results: ResultConfig,
    traffic: TrafficConfig,
    target: TargetConfig,
    dataset: DatasetConfig,
    model: str,
) -> Path:
    """Write the results with what was asked; gives the path. Raises: ConfigError."""
    now = datetime.now()
    rate = "inf" if math.isinf(traffic.request_rate) else traffic.request_rate
    pairs = (pair.partition("=") for pair in results.metadata)
    header = {
        "date": now.strftime("%Y%m%d-%H%M%S"),
        "label": results.label,
        "backend": target.backend,
        "endpoint_type": target.backend,
        "model_id": model,
        "tokenizer_id": target.tokenizer or target.model or model,
        "dataset_name": dataset.dataset_name,
        "num_prompts": dataset.num_prompts,
        "request_rate": rate,
        "burstiness": "inf" if math.isinf(traffic.burstiness) else traffic.burstiness,
        "burst_size": traffic.burst_size,
        "max_concurrency": traffic.max_concurrency,
        **{name: value for name, _, value in pairs},
    }
    name = results.result_filename or _file_name(header)
    path = Path(results.result_dir or ".") / name
    raw = msgspec.json.encode(header | told)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--result-dir {path.parent}", found=str(error)) from error
    line = raw if results.append_result else msgspec.json.format(raw, indent=1)
    write_file("--result-filename", path, (line, b"\n"), appends=results.append_result)
    return path


def _file_name(header: dict[str, Any]) -> str:
    limit = header["max_concurrency"]
    concurrency = "" if limit is None else f"-concurrency{limit}"
    model = str(header["model_id"]).rstrip("/").rpartition("/")[2]
    label = header["label"] or header["backend"]
    return f"{label}-{header['request_rate']}qps{concurrency}-{model}-{header['date']}.json"
