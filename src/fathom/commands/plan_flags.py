"""The flags of `fathom plan`, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from fathom.commands.flags import FlagParser
from fathom.commands.messages import LANGUAGES, Language, Words, read_words
from fathom.config import environment_language
from fathom.errors import ConfigError
from fathom.perf.advise import Claim
from fathom.perf.candidate import DEVICE_SHARE, Demand, Slo
from fathom.perf.precision import CACHES, WEIGHTS
from fathom.perf.price import ApiPrice, CostAsked, Prices
from fathom.spec.parallel import Layout
from fathom.units import parse_count

_DOC = """Says what a model needs, what a machine would do with it, and what that costs: before
anything is bought or downloaded. Without --gpu: the cheapest machines that do what is asked."""
_COUNT_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_LARGEST = 1e15
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:e(\d{1,2}))?\s*([a-zµ%]*)", re.IGNORECASE)
_CLAIM = "qps=127,isl=512,osl=100,mean=68ms"
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}


@dataclass(frozen=True, slots=True)
class Asked:
    """All that the command line says."""

    model: str
    gpu: str | None
    nodes: int | None
    network: str | None
    hardware: str | None
    calibration: str | None
    prices: str | None
    demand: Demand
    costs: dict[str, str]
    claim: Claim | None
    as_json: bool
    explain: bool
    emit: str | None
    words: Words


def parse(arguments: list[str]) -> Asked:
    """Raises: ConfigError for what is unknown, contradictory or nonsense."""
    words = read_words("plan", language(arguments))
    namespace = _parser().parse(arguments)
    parts = _Parts(words)
    context, isl = namespace.context, namespace.isl
    demand = Demand(
        context=context,
        users=namespace.users,
        input_len=isl,
        output_len=namespace.osl,
        cached_len=namespace.cached,
        slo=parts.slo(namespace.slo),
        weights=namespace.weights,
        kv=namespace.kv,
        layout=parts.layout(namespace.layout),
        share=namespace.gpu_memory_utilization,
    )
    if context is not None and demand.request_len > context:
        found = f"{isl} + {namespace.osl}"
        raise words.error("too_long", found=found, wanted=f"--context {demand.request_len}")
    if namespace.cached >= isl:
        raise words.error("cached", found=str(namespace.cached), wanted=f"0 - {isl - 1}")
    claim = parts.claim(namespace.claim)
    of_a_machine = ("nodes", "network", "layout", "calibration", "claim", "emit")
    given = [f"--{name}" for name in of_a_machine if getattr(namespace, name)]
    if given and not namespace.gpu:
        raise words.error("needs_gpu", flags=", ".join(given))
    if namespace.gpu == "local" and (namespace.nodes or namespace.network):
        raise words.error("local_alone")
    return Asked(
        model=namespace.model,
        gpu=namespace.gpu,
        nodes=namespace.nodes,
        network=namespace.network,
        hardware=namespace.hardware,
        calibration=namespace.calibration,
        prices=namespace.prices,
        demand=demand,
        costs=parts.pairs("--cost", namespace.cost, _COST_KEYS),
        claim=claim,
        as_json=namespace.json,
        explain=namespace.explain,
        emit=namespace.emit,
        words=words,
    )


def language(arguments: list[str]) -> Language:
    """That of `--lang`, or of the locale; errors in the flags are told in it too."""
    for at, one in enumerate(arguments):
        name, equals, value = one.partition("=")
        if name == "--lang":
            value = value if equals else next(iter(arguments[at + 1 :]), "")
            if value not in LANGUAGES:
                raise ConfigError("--lang", found=repr(value), wanted=" or ".join(LANGUAGES))
            return value
    return "zh" if environment_language().startswith("zh") else "en"


def _parser() -> FlagParser:
    parser = FlagParser("plan", _DOC)
    add = parser.add_argument
    add("model", metavar="MODEL", help="A known model, or a directory with its config.json.")
    add("--gpu", help="The machine: 8xH20-96, 16xH100-80; local for the GPUs of this one, "
        "cpu for its CPUs, measured by bench calibrate.")  # fmt: skip
    add("--nodes", type=_whole("--nodes"), help="Nodes of as many GPUs as --gpu says.")
    add("--network", help="Link of each GPU between nodes, such as ib-ndr or roce-200.")
    add("--context", type=_whole("--context"), help="Longest sequence, such as 128k.")
    add("--users", type=_whole("--users"), help="Requests at a time.")
    add("--isl", type=_whole("--isl"), default=2000, help="Tokens of a prompt. Default: 2000.")
    add("--osl", type=_whole("--osl"), default=500, help="Tokens of an answer. Default: 500.")
    add("--cached", type=_whole("--cached", 0), default=0, help="Tokens of a prompt in the cache.")
    add("--slo", help="At most, in means: ttft=2s,tpot=50ms,e2e=20s.")
    add("--weights", choices=WEIGHTS, help="Format of the weights. Default: as published.")
    add("--kv", choices=CACHES, help="Format of the KV cache.")
    add("--layout", help="Only this one: tp=4,dp=2,ep=8,pp=1.")
    add("--gpu-memory-utilization", type=_share, default=DEVICE_SHARE,
        help=f"Share of the memory that may be used. Default: {DEVICE_SHARE}.")  # fmt: skip
    add("--cost", help="hour=2.5 (one GPU), api=NAME or hit/miss/output, tokens=15g "
        "(a month), utilization=60%%, kwh=0.1, pue=1.3, currency=CNY.")  # fmt: skip
    add("--prices", help="TOML file with prices of your own.")
    add("--hardware", help="TOML file with hardware of your own.")
    add("--calibration", help="Measured times of kernels. Default: as for simulate.")
    add("--claim", help=f"Check it: {_CLAIM}.")
    add("--explain", action="store_true", help="Show each formula with its numbers.")
    add("--json", action="store_true", help="Print JSON (schema fathom-plan/1).")
    add("--emit", metavar="FILE", help="Write a fathom.toml for fathom serve --config.")
    add("--lang", choices=LANGUAGES, help="Default: by the locale.")
    return parser


def _whole(flag: str, least: int = 1) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = parse_count(text, flag)
        if not least <= value <= _LARGEST:
            raise ConfigError(flag, found=repr(text), wanted=f"{least} or more")
        return value

    return convert


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError("--gpu-memory-utilization", found=repr(text), wanted="in (0, 1]")
    return value


_COST_KEYS = ("hour", "kwh", "pue", "utilization", "tokens", "api", "currency")


@dataclass(frozen=True, slots=True)
class _Parts:
    """Reads the flags that have parts, `key=value,...`."""

    words: Words

    def pairs(self, flag: str, text: str | None, known: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        if text is None:
            return found
        items = [one.strip() for one in text.split(",") if one.strip()]
        if not items:
            wanted = ", ".join(f"{one}=..." for one in known)
            raise self.words.error("empty", flag=flag, found=repr(text), wanted=wanted)
        for item in items:
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in known or not equals or not value:
                near = get_close_matches(key, known, 1)
                wanted = ", ".join(f"{one}=..." for one in (near or known))
                raise self.words.error("pairs", flag=flag, item=repr(item), wanted=wanted)
            if key in found:
                raise self.words.error("twice", flag=flag, key=key)
            found[key] = value
        return found

    def number(self, flag: str, key: str, text: str, units: dict[str, float], wanted: str) -> float:
        match = _NUMBER.fullmatch(text.strip())
        if match is not None and match[3].lower() in units:
            value = float(match[1]) * 10.0 ** int(match[2] or 0) * units[match[3].lower()]
            if 0 < value <= _LARGEST:
                return value
        raise self.words.error("number", flag=flag, key=key, found=repr(text), wanted=wanted)

    def seconds(self, flag: str, pairs: dict[str, str], key: str) -> float | None:
        wanted = "2s, 50ms"
        return self.number(flag, key, pairs[key], _SECONDS, wanted) if key in pairs else None

    def count(self, flag: str, pairs: dict[str, str], key: str) -> int | None:
        if key not in pairs:
            return None
        value = self.number(flag, key, pairs[key], _COUNT_UNITS, "512, 2k")
        if value < 1:
            raise self.words.error("number", flag=flag, key=key, found=pairs[key], wanted="1, 512")
        return round(value)

    def slo(self, text: str | None) -> Slo:
        pairs = self.pairs("--slo", text, ("ttft", "tpot", "e2e"))
        ttft, tpot, e2e = (self.seconds("--slo", pairs, key) for key in ("ttft", "tpot", "e2e"))
        if e2e is not None and ttft is not None and e2e < ttft:
            raise self.words.error("slo_order", found=f"ttft={pairs['ttft']}, e2e={pairs['e2e']}")
        return Slo(ttft_s=ttft, tpot_s=tpot, e2e_s=e2e)

    def layout(self, text: str | None) -> Layout | None:
        pairs = self.pairs("--layout", text, ("tp", "dp", "ep", "pp"))
        whole = {key: parse_count(value, f"--layout {key}") for key, value in pairs.items()}
        return Layout(**whole) if whole else None

    def claim(self, text: str | None) -> Claim | None:
        flag = "--claim"
        pairs = self.pairs(flag, text, ("qps", "isl", "osl", "mean"))
        if not pairs:
            return None
        mean, isl = self.seconds(flag, pairs, "mean"), self.count(flag, pairs, "isl")
        if mean is None or isl is None:
            key = "mean" if mean is None else "isl"
            raise self.words.error("claim_lacks", key=key, found=text or "", wanted=_CLAIM)
        qps = self.number(flag, "qps", pairs["qps"], {"": 1.0}, "127") if "qps" in pairs else None
        osl = self.count(flag, pairs, "osl")
        return Claim(per_s=qps, input_len=isl, output_len=osl, mean_s=mean)


def cost_asked(asked: Asked, prices: Prices) -> CostAsked:
    """What `--cost` says, with the price of the API that it names. Raises: ConfigError."""
    parts, pairs, flag = _Parts(asked.words), asked.costs, "--cost"

    def number(key: str, units: dict[str, float], wanted: str) -> float | None:
        return parts.number(flag, key, pairs[key], units, wanted) if key in pairs else None

    utilization = number("utilization", {"": 1.0, "%": 0.01}, "0.6, 60%") or 1.0
    if utilization > 1:
        raise asked.words.error(
            "number", flag=flag, key="utilization", found=pairs["utilization"], wanted="0 - 100%"
        )
    return CostAsked(
        currency=pairs.get("currency", "USD").upper(),
        hour=number("hour", {"": 1.0}, "2.5"),
        kwh=number("kwh", {"": 1.0}, "0.1"),
        pue=number("pue", {"": 1.0}, "1.3") or 1.0,
        utilization=utilization,
        month_tokens=number("tokens", _COUNT_UNITS, "15g, 15000m, 15e9"),
        api=_api(parts, pairs["api"], prices, pairs.get("currency", "USD").upper())
        if "api" in pairs
        else None,
    )


def _api(parts: _Parts, text: str, prices: Prices, currency: str) -> ApiPrice:
    """`hit/miss/output`, one price of all tokens, or the id of a row."""
    if not re.match(r"[\d.]", text):
        return prices.named(text)
    each = [
        parts.number("--cost", "api", one, {"": 1.0}, "0.07/0.56/1.68") for one in text.split("/")
    ]
    if len(each) not in (1, 3):
        raise parts.words.error(
            "number", flag="--cost", key="api", found=text, wanted="hit/miss/output"
        )
    hit, miss, output = each * 3 if len(each) == 1 else each
    return ApiPrice(
        id="--cost api", currency=currency, cache_hit=hit, cache_miss=miss, output=output,
        source="--cost", date="",
    )  # fmt: skip
