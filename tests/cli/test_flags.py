"""Compares flags with the fields that they come from, and foreign flags with the verdict table."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any, get_type_hints

import pytest

from fathom.commands.foreign import Foreign
from fathom.commands.foreign_flags import foreign_flags
from fathom.commands.serve import parse
from fathom.config import EngineConfig
from fathom.errors import ConfigError
from fathom.server.config import ServerConfig

FOREIGN = foreign_flags("serve")
FIELDS = [(config, one) for config in (EngineConfig, ServerConfig) for one in fields(config)]
OWN = {flag for _, one in FIELDS for flag in one.metadata["flags"]}
# A text for each field that its type alone does not tell.
TEXTS: dict[str, tuple[str, Any]] = {
    "dtype": ("float32", "float32"),
    "kv_cache_dtype": ("float32", "float32"),
    "device": ("cpu", "cpu"),
    "gpu_memory_utilization": ("0.5", 0.5),
    "host": ("localhost", "localhost"),
    "log_level": ("debug", "debug"),
    "num_speculative_tokens": ("1", 1),
}
# Flags of the lists that people copy from (vLLM's and SGLang's pages for DeepSeek): none of them
# may be "unknown".
IN_THE_WILD = """
--model --model-path --tokenizer --tokenizer-path --served-model-name --trust-remote-code --revision
--hf-token --download-dir --load-format --dtype --quantization -q --kv-cache-dtype --max-model-len
--context-length --hf-overrides --json-model-override-args --tensor-parallel-size -tp --tp-size --tp
--pipeline-parallel-size -pp --pp-size --data-parallel-size -dp --dp-size --enable-expert-parallel
-ep --ep-size --ep --expert-parallel-size --attn-dp-size --enable-dp-attention --nnodes -n
--node-rank -r --master-addr --master-port --dist-init-addr --nccl-init-addr
--distributed-timeout-seconds --dist-timeout --distributed-executor-backend --worker-use-ray
--use-ray --headless --api-server-count --tokenizer-worker-num --gpu-memory-utilization
--mem-fraction-static --kv-cache-memory-bytes --max-total-tokens --num-gpu-blocks-override
--block-size --page-size --max-num-seqs --max-running-requests --max-num-batched-tokens
--chunked-prefill-size --max-prefill-tokens --enable-chunked-prefill --no-enable-chunked-prefill
--long-prefill-token-threshold --prefill-decode-interval --max-num-queued-reqs
--max-num-queued-tokens --max-queued-requests --enable-prefix-caching --no-enable-prefix-caching
--disable-radix-cache --radix-eviction-policy --schedule-policy --schedule-conservativeness
--enable-priority-scheduling --scheduling-policy --kv-offloading-size --kv-offloading-backend
--enable-hierarchical-cache --hicache-ratio --hicache-size --hicache-storage-backend
--cpu-offload-gb --enforce-eager --disable-cuda-graph --cudagraph-capture-sizes
--max-cudagraph-capture-size --cuda-graph-bs-decode --cuda-graph-max-bs-decode --attention-backend
--moe-backend --linear-backend --all2all-backend --moe-runner-backend --fp8-gemm-backend
--moe-a2a-backend --deepep-mode --enable-eplb --eplb-config --ep-num-redundant-experts
--speculative-config --spec-method --spec-model --spec-tokens --speculative-algorithm
--speculative-num-steps --speculative-eagle-topk --speculative-num-draft-tokens --reasoning-parser
--tool-call-parser --enable-auto-tool-choice --chat-template --default-chat-template-kwargs
--structured-outputs-config.backend --grammar-backend --generation-config
--override-generation-config --sampling-defaults --preferred-sampling-params --seed --random-seed
--enable-deterministic-inference --host --port --uds --root-path --fastapi-root-path --api-key
--admin-api-key --ssl-keyfile --ssl-certfile --allowed-origins --disable-log-stats
--enable-log-requests --max-log-len --disable-uvicorn-access-log --log-level --log-requests
--log-requests-level --decode-log-interval --enable-metrics --enable-cache-report
--enable-prompt-tokens-details --otlp-traces-endpoint --enable-trace --shutdown-timeout
--watchdog-timeout --crash-dump-folder --kv-transfer-config --disaggregation-mode
--disaggregation-transfer-backend --disaggregation-bootstrap-port --disaggregation-ib-device
--enable-sleep-mode --enable-memory-saver --enable-lora --lora-modules --max-loras --max-lora-rank
--lora-paths --max-loras-per-batch --config --stream-interval --sse-keep-alive-interval
--max-logprobs --logprobs-mode --preload-model --swap-space --disable-log-requests
--enable-reasoning --guided-decoding-backend --num-speculative-tokens --disable-mla --enable-ep-moe
--enable-flashinfer-mla --cuda-graph-max-bs --torchao-config --disable-jump-forward
""".split()  # noqa: SIM905  # as people paste them


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FATHOM_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def asked(config: type, arguments: list[str]) -> Any:
    engine, server, _ = parse(arguments)
    return engine if config is EngineConfig else server


def sample(config: type, one: Field[Any]) -> tuple[str, Any]:
    """A text and its value, for a field that is not a switch."""
    if one.name in TEXTS:
        return TEXTS[one.name]
    if "most" in one.metadata:
        return "2", 2
    if one.metadata["unit"] == "bytes":
        return "2GiB", 2 * 2**30
    hint = get_type_hints(config)[one.name]
    if hint in (int, int | None):
        return "4k", 4000
    if hint in (float, float | None):
        return "2.5", 2.5
    return ("name", ("name",) if hint == tuple[str, ...] else "name")


@pytest.mark.parametrize(("config", "one"), FIELDS, ids=lambda value: getattr(value, "name", ""))
def test_every_field_has_its_flags(config: type, one: Field[Any]) -> None:
    assert one.metadata["doc"]
    for flag in one.metadata["flags"]:
        if get_type_hints(config)[one.name] is bool:
            negative = flag.replace("--", "--no-", 1)
            assert getattr(asked(config, [flag]), one.name) is True
            assert getattr(asked(config, [negative]), one.name) is False
            continue
        text, value = sample(config, one)
        assert getattr(asked(config, [flag, text]), one.name) == value
        if flag.startswith("--"):
            assert getattr(asked(config, [f"{flag}={text}"]), one.name) == value
            underscored = "--" + flag[2:].replace("-", "_")
            assert getattr(asked(config, [underscored, text]), one.name) == value


def test_no_flags_are_the_defaults() -> None:
    assert parse([]) == (EngineConfig(), ServerConfig(), [])


@pytest.mark.parametrize(
    ("text", "value"), [("32k", 32_000), ("128K", 131_072), ("auto", None), ("-1", None)]
)
def test_context_lengths_as_people_write_them(text: str, value: int | None) -> None:
    assert asked(EngineConfig, ["--max-model-len", text]).max_model_len == value


def test_model_by_place_and_by_name() -> None:
    assert asked(EngineConfig, ["m"]).model == "m"
    assert asked(EngineConfig, ["m", "--model", "m", "--served-model-name", "a", "b"]).model == "m"
    with pytest.raises(ConfigError, match="differ"):
        parse(["m", "--model", "other"])
    with pytest.raises(ConfigError, match="too many"):
        parse(["m", "n"])


def test_keys_by_flag_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_API_KEY", "third")
    server = asked(ServerConfig, ["--api-key", "first", "model", "--api-key", "second"])
    assert server.api_key == ("first", "second", "third")


def test_own_and_foreign_flags_do_not_overlap() -> None:
    names = [name for entry in FOREIGN for name in entry.names]
    assert len(names) == len(set(names))
    translated = {name for entry in FOREIGN for name in entry.names if entry.into is not None}
    assert set(names) & OWN <= translated


@pytest.mark.parametrize("name", IN_THE_WILD)
def test_flags_in_the_wild_are_known(name: str) -> None:
    known = OWN | {"--config"} | {one for entry in FOREIGN for one in entry.names}
    negatives = {flag.replace("--", "--no-", 1) for flag in OWN}
    assert name in known | negatives


@pytest.mark.parametrize("entry", FOREIGN, ids=lambda entry: entry.names[0])
def test_foreign_flags_get_their_verdict(entry: Foreign) -> None:
    for name in entry.names:
        values = ["zzz"] if entry.num_values else []
        if entry.verdict == "translated":
            continue
        if entry.verdict == "accepted" and not entry.harmless:
            notes = parse([name, *values])[2]
            assert [note.partition(":")[0] for note in notes] == [name]
            continue
        with pytest.raises(ConfigError) as caught:
            parse([name, *values])
        assert caught.value.what.startswith(f"{name} ")
        assert entry.why in str(caught.value)
        for value in entry.harmless:
            assert parse([name, value])[2] == [f"{name}: {entry.why}"]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--disable-radix-cache"], "enable_prefix_caching", False),
        (["--disable-overlap-schedule"], "overlap_scheduling", False),
        (["--chunked-prefill-size", "4096"], "max_num_batched_tokens", 4096),
        (["--chunked_prefill_size=4096"], "max_num_batched_tokens", 4096),
        (["--spec-tokens", "1"], "num_speculative_tokens", 1),
        (
            ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}'],
            "num_speculative_tokens",
            2,
        ),
        (["--speculative-algorithm", "NEXTN"], "num_speculative_tokens", 1),
        (
            [
                *("--speculative-num-steps", "2", "--speculative-algorithm", "EAGLE"),
                *("--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "3"),
            ],
            "num_speculative_tokens",
            2,
        ),
        (["--tp", "2", "--trust-remote-code", "m"], "tensor_parallel_size", 2),
    ],
)
def test_translated_flags(arguments: list[str], field: str, value: object) -> None:
    assert getattr(asked(EngineConfig, arguments), field) == value


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--enforce-eager", "False"], "takes no value"),
        (["--speculative-config", "{"], "JSON object"),
        (["--speculative-config", '{"method": "eagle"}'], "--num-speculative-tokens"),
        (["--speculative-algorithm", "NGRAM"], "MTP layer"),
        (["--speculative-eagle-topk", "4"], "a chain"),
        (["--chunked-prefill-size", "-1"], "chunked prefill off"),
        (["--mem-fraction-static", "0.85"], "--gpu-memory-utilization"),
        (["--pipeline-parallel-size", "2"], "not implemented yet"),
        (["--nnodes=2"], "one node"),
        (["--reasoning-parser", "qwen3"], "deepseek_r1"),
        (["--load-format", "gguf"], "safetensors"),
        (["--max-modle-len", "5"], "did you mean --max-model-len?"),
        (["--enable-flashinfr-mla"], "did you mean --enable-flashinfer-mla?"),
        (["--port", "x"], "--port"),
        (["--port", "70000"], "0 to 65535"),
        (["--port"], "expected one argument"),
        (["--max-model-len", "12q"], "32k"),
        (["--gpu-memory-utilization", "1.5"], "(0, 1]"),
        (["--gpu-memory-utilization", "x"], "a number"),
        (["--step-timeout", "nan"], "over 0"),
        (["--kv-cache-memory-bytes", "4 bananas"], "4GiB"),
        (["--host", "0.0.0.0"], "loopback"),
        (["--log-level", "loud"], "debug"),
        (["--zzzzzz"], "fathom serve --help"),
    ],
)
def test_wrong_command_lines_are_explained(arguments: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert what in str(caught.value)
