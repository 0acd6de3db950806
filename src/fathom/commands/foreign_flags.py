"""The table of vLLM's and SGLang's flags that fathom knows, and what it says to each."""

from __future__ import annotations

import json

from fathom.commands.foreign import Foreign, Verdict
from fathom.errors import ConfigError


def _one(verdict: Verdict, names: str, why: str, **more: object) -> Foreign:
    return Foreign(names=tuple(names.split()), verdict=verdict, why=why, **more)  # type: ignore[arg-type]


def _accepted(names: str, why: str, num_values: int = 1, **more: object) -> Foreign:
    return _one("accepted", names, why, num_values=num_values, **more)


def _dropped(names: str, why: str, num_values: int = 1, **more: object) -> Foreign:
    return _one("dropped", names, why, num_values=num_values, **{"fix": "leave it out", **more})


def _missing(names: str, why: str, num_values: int = 1, **more: object) -> Foreign:
    return _one("missing", names, why, num_values=num_values, **more)


def _speculative_config(value: str) -> list[str]:
    """vLLM's JSON. Raises: ConfigError for anything but the model's own MTP layer."""
    try:
        config = json.loads(value)
    except ValueError:
        config = None
    flag = "--speculative-config"
    if not isinstance(config, dict):
        raise ConfigError(flag, found=value[:80], wanted="a JSON object")
    method = config.pop("method", "mtp")
    count = config.pop("num_speculative_tokens", 1)
    if method not in ("mtp", "deepseek_mtp") or config or not isinstance(count, int):
        raise ConfigError(
            f"{flag} cannot be honoured",
            found=value[:80],
            wanted='{"method": "mtp", "num_speculative_tokens": N}',
            fix="--num-speculative-tokens N",
        )
    return ["--num-speculative-tokens", str(count)]


def _draft_method(value: str) -> list[str]:
    """One draft, unless another flag says how many. Raises: ConfigError for other methods."""
    if value.lower() not in ("nextn", "eagle", "mtp", "deepseek_mtp"):
        raise ConfigError(
            "the method of drafting cannot be honoured",
            found=value,
            wanted="NEXTN, EAGLE or mtp, which are the model's own MTP layer",
            fix="--num-speculative-tokens N",
        )
    return ["--num-speculative-tokens", "1"]


def _chunk_size(value: str) -> list[str]:
    if value == "-1":
        raise ConfigError(
            "--chunked-prefill-size -1 cannot be honoured",
            found="it turns chunked prefill off",
            wanted="a count of tokens: long prompts always run in chunks",
            fix="--max-num-batched-tokens N, with N over the longest prompt",
        )
    return ["--max-num-batched-tokens", value]


_NODES = "fathom runs on one node"
_ONE_DEVICE_GROUP = "tensor parallelism is the only split"
_FILES = "fathom serves directories and downloads nothing"
_PROXY = "put a proxy such as Caddy or nginx in front"
_KERNELS = "there is one backend, the reference"
_NO_GRAPHS = "there are no CUDA graphs: every step runs eagerly"
_AUTO = "it follows from the checkpoint's chat template"
_GRAMMAR = "there is one grammar engine"
_V3_PARSERS = (
    *("auto", "deepseek_r1", "deepseek-r1", "deepseek_v3", "deepseek-v3", "deepseek_v31"),
    *("deepseek-v31", "deepseekv3", "deepseekv31"),
)

_ACCEPTED = (
    _accepted(
        "--trust-remote-code", "no code of a checkpoint is ever run; the model is built in", 0
    ),
    _accepted("--enable-metrics", "metrics are always on, at /metrics", 0),
    _accepted("--enable-chunked-prefill", "long prompts always run in chunks", 0),
    _accepted("--reasoning-parser", _AUTO, harmless=_V3_PARSERS),
    _accepted("--tool-call-parser", _AUTO, harmless=_V3_PARSERS),
    _accepted("--enable-auto-tool-choice", "it is always on", 0),
    _accepted(
        "--load-format",
        "safetensors are read",
        harmless=("auto", "safetensors"),
        fix="leave it out",
    ),
    _accepted("--enforce-eager --disable-cuda-graph", _NO_GRAPHS, 0),
    _accepted(
        "--enable-prompt-tokens-details --enable-cache-report",
        "cached tokens are always reported",
        0,
    ),
    _accepted("--disable-log-stats --disable-uvicorn-access-log", "there is no such log", 0),
    _accepted("--no-enable-log-requests", "requests are not logged by default", 0),
    _accepted(
        "--generation-config --sampling-defaults",
        "defaults of sampling come from the checkpoint's generation_config.json",
        harmless=("auto", "model"),
        fix="set the values in the request",
    ),
    _accepted(
        "--distributed-executor-backend",
        "ranks are processes of this node",
        harmless=("mp", "uni"),
        fix="leave it out",
    ),
    _accepted("--tokenizer-mode", "there is one tokenizer", harmless=("auto", "hf", "slow")),
    _accepted(
        "--scheduling-policy --schedule-policy",
        "lower priority first, equal ones in order of arrival",
        harmless=("fcfs", "priority"),
        fix="leave it out",
    ),
    _accepted("--enable-priority-scheduling", "priorities are always honoured", 0),
    _accepted("--radix-eviction-policy", "pages least recently used go first", harmless=("lru",)),
    _accepted("--stream-interval", "every step's tokens are sent at once", harmless=("1",)),
    _accepted("--speculative-eagle-topk", "drafts are a chain", harmless=("1",)),
    _accepted(
        "--speculative-num-draft-tokens", "in a chain it is one more than the steps, as in SGLang"
    ),
    _accepted(
        "--attention-backend --moe-backend --linear-backend --moe-runner-backend "
        "--fp8-gemm-backend --decode-attention-backend --prefill-attention-backend",
        _KERNELS,
        harmless=("auto", "reference"),
        fix="leave it out",
    ),
)

_TRANSLATED = (
    _one(
        "translated",
        "--disable-radix-cache",
        "prefix caching off",
        num_values=0,
        into=lambda _: ["--no-enable-prefix-caching"],
    ),
    _one(
        "translated",
        "--disable-overlap-schedule",
        "overlap off",
        num_values=0,
        into=lambda _: ["--no-overlap-scheduling"],
    ),
    _one("translated", "--speculative-config", "MTP drafts", into=_speculative_config),
    _one(
        "translated",
        "--speculative-algorithm --spec-method",
        "the model's own MTP layer drafts",
        into=_draft_method,
        gives_way=True,
    ),
    _one(
        "translated",
        "--spec-tokens --speculative-num-steps",
        "MTP drafts",
        into=lambda v: ["--num-speculative-tokens", v],
    ),
    _one("translated", "--chunked-prefill-size", "tokens a step", into=_chunk_size),
)

_EXPLAINED = (
    _one(
        "other",
        "--mem-fraction-static",
        "SGLang's share holds weights and KV only and leaves the rest to activations; "
        "--gpu-memory-utilization is the share of everything, so the number does not carry over",
        fix="--gpu-memory-utilization with about 0.05 more, or --kv-cache-memory-bytes",
    ),
    _one(
        "other",
        "--max-total-tokens --num-gpu-blocks-override",
        "the KV pool is given in bytes",
        fix="--kv-cache-memory-bytes",
    ),
    _dropped(
        "--worker-use-ray --use-ray --engine-use-ray",
        "vLLM replaced it by --distributed-executor-backend; fathom starts its ranks itself",
        0,
    ),
    _dropped("--preload-model", "no engine ever had it: a model is loaded at start", 0),
    _dropped(
        "--swap-space",
        "vLLM gave it up with its V1 engine: a sequence without room is computed again later",
        harmless=("0",),
    ),
    _dropped(
        "--disable-log-requests",
        "vLLM turned it round: requests are not logged unless --enable-log-requests",
        0,
    ),
    _dropped("--max-log-len", "text of requests is never logged"),
    _dropped("--enable-reasoning", "vLLM gave it up: reasoning is always given apart", 0),
    _dropped(
        "--use-v2-block-manager --disable-frontend-multiprocessing --multi-step-stream-outputs",
        "vLLM gave it up with its V0 engine",
        0,
    ),
    _dropped(
        "--num-lookahead-slots --num-scheduler-steps --preemption-mode --max-seq-len-to-capture "
        "--delay-factor --scheduler-delay-factor",
        "vLLM gave it up with its V0 engine",
    ),
    _dropped("--guided-decoding-backend", _GRAMMAR),
    _dropped(
        "--disable-mla --enable-flashinfer-mla --enable-flashmla",
        "MLA is how these models attend; there is nothing to switch",
        0,
    ),
    _dropped(
        "--enable-ep-moe --enable-deepep-moe",
        "SGLang replaced it by --ep-size; experts are split over the tensor parallel ranks",
        0,
    ),
    _dropped("--cuda-graph-max-bs --cuda-graph-bs", _NO_GRAPHS),
    _dropped("--torchao-config", "SGLang gave it up; FP8 blocks are read from the checkpoint"),
    _dropped(
        "--disable-jump-forward --disable-jump-forward-decoding",
        "SGLang gave jump-forward decoding up",
        0,
    ),
    _dropped("--disable-custom-all-reduce", _KERNELS, 0),
    _one(
        "other",
        "--insecure-no-auth",
        "a server that others can reach has a key",
        num_values=0,
        fix="--api-key or FATHOM_API_KEY",
    ),
)

_MISSING = (
    _missing(
        "--no-enable-chunked-prefill --disable-chunked-prefill",
        "long prompts always run in chunks",
        0,
        fix="--max-num-batched-tokens N, with N over the longest prompt",
    ),
    _missing("--pipeline-parallel-size -pp --pp-size --pp", _ONE_DEVICE_GROUP, harmless=("1",)),
    _missing(
        "--data-parallel-size -dp --dp-size --dp --attn-dp-size",
        _ONE_DEVICE_GROUP,
        harmless=("1",),
        fix="start several servers",
    ),
    _missing("--enable-dp-attention", _ONE_DEVICE_GROUP, 0),
    _missing("--enable-expert-parallel -ep", _ONE_DEVICE_GROUP, 0),
    _missing("--ep-size --ep --expert-parallel-size", _ONE_DEVICE_GROUP, harmless=("1",)),
    _missing("--nnodes -n", _NODES, harmless=("1",)),
    _missing("--node-rank -r", _NODES, harmless=("0",)),
    _missing(
        "--master-addr --master-port --dist-init-addr --nccl-init-addr --headless",
        _NODES,
        fix="leave it out: the ranks of one node find each other",
    ),
    _missing("--distributed-timeout-seconds --dist-timeout", _NODES, fix="--step-timeout"),
    _missing("--api-server-count --tokenizer-worker-num", "one API process", harmless=("1",)),
    _missing(
        "--cpu-offload-gb --kv-offloading-size --hicache-size --hicache-ratio",
        "weights and KV stay on the device",
        harmless=("0",),
    ),
    _missing("--enable-hierarchical-cache", "KV stays on the device", 0),
    _missing("--kv-offloading-backend --hicache-storage-backend", "KV stays on the device"),
    _missing("--revision --hf-token --download-dir", _FILES, fix="give the directory of the files"),
    _missing("--hf-overrides --json-model-override-args", "config.json is taken as it stands"),
    _missing("--skip-tokenizer-init", "the API is text", 0),
    _missing("--all2all-backend --moe-a2a-backend --deepep-mode", _ONE_DEVICE_GROUP),
    _missing(
        "--cudagraph-capture-sizes --max-cudagraph-capture-size --cuda-graph-bs-decode "
        "--cuda-graph-max-bs-decode --compilation-config -O",
        _NO_GRAPHS,
        fix="leave it out",
    ),
    _missing("--enable-eplb", "experts stay where they are", 0),
    _missing("--eplb-config --ep-num-redundant-experts", "experts stay where they are"),
    _missing(
        "--speculative-draft-model-path --spec-model",
        "drafts come from the model's own MTP layer",
        fix="--num-speculative-tokens N",
    ),
    _missing(
        "--structured-outputs-config --structured-outputs-config.backend --grammar-backend",
        _GRAMMAR,
    ),
    _missing(
        "--default-chat-template-kwargs --override-generation-config --preferred-sampling-params",
        "defaults are the checkpoint's",
        fix="set the values in the request",
    ),
    _missing("--enable-deterministic-inference", "results may depend on the batch's shape", 0),
    _missing(
        "--long-prefill-token-threshold --prefill-decode-interval "
        "--schedule-conservativeness --max-num-queued-tokens",
        "the scheduler has one budget of tokens",
        fix="--max-num-batched-tokens",
    ),
    _missing("--logprobs-mode", "logprobs are the model's own", harmless=("raw_logprobs",)),
    _missing(
        "--uds --root-path --fastapi-root-path --ssl-keyfile --ssl-certfile --ssl-ca-certs",
        "the server speaks plain HTTP on a port",
        fix=_PROXY,
    ),
    _missing(
        "--allowed-origins --allowed-methods --allowed-headers",
        "pages of other sites are not answered",
        fix=_PROXY,
    ),
    _missing("--admin-api-key", "there are no admin routes", fix="--api-key"),
    _missing("--otlp-traces-endpoint --collect-detailed-traces", "there is no tracing"),
    _missing("--enable-trace", "there is no tracing", 0),
    _missing(
        "--kv-transfer-config --disaggregation-mode --disaggregation-transfer-backend "
        "--disaggregation-bootstrap-port --disaggregation-ib-device",
        "prefill and decode run in one engine",
    ),
    _missing("--enable-sleep-mode --enable-memory-saver", "the engine keeps its memory", 0),
    _missing("--enable-lora", "adapters are not served", 0),
    _missing(
        "--lora-modules --lora-paths --max-loras --max-lora-rank --max-loras-per-batch",
        "adapters are not served",
    ),
    _missing(
        "--crash-dump-folder --decode-log-interval --log-requests-level",
        "the log is one line an event",
        fix="leave it out",
    ),
)

FOREIGN = _ACCEPTED + _TRANSLATED + _EXPLAINED + _MISSING
