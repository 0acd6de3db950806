"""What a deployment costs by the token, beside an API: hours of GPUs, energy, and the share of the
time that it must be busy to be the cheaper one.

`tables/prices.toml` has prices with their sources and dates; a file of the user's own changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any, TypeVar, cast

from fathom.errors import ConfigError
from fathom.spec.catalogue_rows import read_tables

HOURS_A_MONTH = 730.0
MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiPrice:
    """Of a million tokens at a provider: prompts in its cache, other prompts, answers."""

    id: str
    models: tuple[str, ...] = ()
    currency: str = "USD"
    cache_hit: float
    cache_miss: float
    output: float
    source: str
    date: str

    def request(self, input_len: float, output_len: float, cached_len: float) -> float:
        """Of one request."""
        missed = self.cache_miss * (input_len - cached_len)
        return (self.cache_hit * cached_len + missed + self.output * output_len) / MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPrice:
    """Of an hour of one GPU of the catalogue."""

    id: str
    currency: str = "USD"
    hour: float
    source: str
    date: str


@dataclass(frozen=True, slots=True)
class Prices:
    """All prices that are known."""

    apis: tuple[ApiPrice, ...]
    gpus: tuple[GpuPrice, ...]

    def changed(self, text: str, where: str) -> Prices:
        """With the rows of a TOML document, `[[api]]` and `[[gpu]]`, in front: a row replaces the
        one with its `id`. Raises: ConfigError that names `where` and what is wrong."""
        tables = read_tables(text, ("api", "gpu"), where)
        apis = tuple(_row(ApiPrice, row, where) for row in tables["api"])
        gpus = tuple(_row(GpuPrice, row, where) for row in tables["gpu"])
        return Prices(_merged(apis, self.apis), _merged(gpus, self.gpus))

    def gpu(self, id: str, currency: str) -> GpuPrice | None:
        """The first price of a GPU in a currency."""
        found = (one for one in self.gpus if (one.id, one.currency) == (id, currency))
        return next(found, None)

    def api(self, model: str, currency: str) -> ApiPrice | None:
        """The first price of a model, by its name on the hub, in a currency."""
        name = model.lower().removeprefix("deepseek-ai/")
        found = (one for one in self.apis if name in one.models and one.currency == currency)
        return next(found, None)

    def named(self, id: str) -> ApiPrice:
        """The price of this id. Raises: ConfigError with those there are."""
        for one in self.apis:
            if one.id == id:
                return one
        wanted = f"{', '.join(one.id for one in self.apis)}, or hit/miss/output such as 0.07/0.56/1"
        raise ConfigError("--cost api", found=repr(id[:80]), wanted=wanted)


def built_in_prices() -> Prices:
    """Those that come with fathom."""
    text = resources.files("fathom.perf").joinpath("tables", "prices.toml")
    return Prices((), ()).changed(text.read_text(encoding="utf-8"), "prices.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAsked:
    """What is known of costs, as asked; None where it is not. `hour`: of one GPU; `kwh`: of a kWh;
    `pue`: energy of the site over that of the GPUs; `utilization`: share of the time at full load;
    `month_tokens`: prompts and answers of a month."""

    currency: str = "USD"
    hour: float | None = None
    kwh: float | None = None
    pue: float = 1.0
    utilization: float = 1.0
    month_tokens: float | None = None
    api: ApiPrice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What came out, in `currency`; None where a price is not known. `hour`: of all GPUs and, where
    a kWh has a price, their energy. `api_million`: of the same mix of tokens. `break_even`: share
    of the time at full load from which on the API costs more; over 1 it never does."""

    currency: str
    hour: float | None
    hour_source: str
    watts: float
    kwh_million: float
    joules_token: float
    million: float | None
    million_output: float | None
    api: ApiPrice | None
    api_million: float | None
    break_even: float | None
    month_tokens: float | None
    month_api: float | None
    month_own: float | None
    month_capacity: float
    utilization: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Tokens of a request, and requests a second at full load."""

    input_len: float
    output_len: float
    cached_len: float
    requests_per_s: float

    @property
    def total_len(self) -> float:
        """Tokens of a request."""
        return self.input_len + self.output_len


def costs(
    flow: Flow, *, num_gpus: int, tdp_w: float, gpu: GpuPrice | None, asked: CostAsked
) -> Costs:
    """Of a deployment of `num_gpus` that answers `flow`. GPUs are taken to draw all that they may:
    an upper bound of their energy; hosts, switches and cooling are in `pue`."""
    watts = num_gpus * tdp_w * asked.pue
    hour, source = asked.hour, "--cost hour"
    if hour is None and gpu is not None:
        hour, source = gpu.hour, f"{gpu.source}, {gpu.date}"
    whole = None if hour is None else hour * num_gpus
    if whole is not None and asked.kwh is not None:
        whole += watts / 1000 * asked.kwh
    hourly = flow.requests_per_s * 3600 * asked.utilization
    per_request = None if whole is None else whole / hourly
    api = asked.api
    api_request = None
    if api is not None:
        api_request = api.request(flow.input_len, flow.output_len, flow.cached_len)
    api_million = None if api_request is None else api_request / flow.total_len * MILLION
    month = asked.month_tokens
    joules = watts / (flow.requests_per_s * flow.total_len)
    return Costs(
        currency=asked.currency,
        hour=whole,
        hour_source=source if whole is not None else "",
        watts=watts,
        kwh_million=joules * MILLION / 3.6e6,
        joules_token=joules,
        million=per_request and per_request / flow.total_len * MILLION,
        million_output=per_request and per_request / flow.output_len * MILLION,
        api=api,
        api_million=api_million,
        break_even=whole / (flow.requests_per_s * 3600 * api_request)
        if whole is not None and api_request
        else None,
        month_tokens=month,
        month_api=None if month is None or api_million is None else month_bill(month, api_million),
        month_own=None if whole is None else whole * HOURS_A_MONTH,
        utilization=asked.utilization,
        month_capacity=hourly * flow.total_len * HOURS_A_MONTH,
    )


def month_bill(num_tokens: float, price_million: float) -> float:
    """Of `num_tokens` at a price for a million."""
    return num_tokens / MILLION * price_million


_R = TypeVar("_R", bound=ApiPrice | GpuPrice)


def _row(kind: type[_R], row: dict[str, Any], where: str) -> _R:
    known = {one.name: str(one.type) for one in fields(kind)}
    name = f"{where}: {row.get('id', 'a row without id')}"
    if unknown := set(row) - set(known):
        raise ConfigError(f"{name}: {min(unknown)}", wanted=", ".join(known))
    row = {**row, "source": row.get("source", where), "date": row.get("date", "")}
    if "models" in row:
        if not isinstance(row["models"], list):
            raise ConfigError(f"{name}: models", found=repr(row["models"]), wanted="a list")
        row["models"] = tuple(str(one).lower() for one in row["models"])
    for key, value in row.items():
        is_price = known[key] == "float"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_price and not (is_number and 0 <= value < MILLION):
            raise ConfigError(f"{name}: {key}", found=repr(value), wanted="a price, 0 or more")
        if known[key] == "str" and not isinstance(value, str):
            raise ConfigError(f"{name}: {key}", found=repr(value), wanted="text")
    try:
        made: Any = kind(**row)
        return cast(_R, made)
    except TypeError as error:
        raise ConfigError(name, found=str(error), wanted=", ".join(known)) from error


def _merged(first: tuple[_R, ...], rest: tuple[_R, ...]) -> tuple[_R, ...]:
    keys = {(one.id, one.currency) for one in first}
    return first + tuple(one for one in rest if (one.id, one.currency) not in keys)


def priced(asked: CostAsked, prices: Prices, model: str) -> CostAsked:
    """With the known price of an API for the model, where none was asked."""
    return asked if asked.api else replace(asked, api=prices.api(model, asked.currency))
