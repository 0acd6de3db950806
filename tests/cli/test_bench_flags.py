"""Compares the flags of `fathom bench` with the fields that they come from, and with the lists of
vLLM's and SGLang's benchmarks."""

from __future__ import annotations

import math
from dataclasses import Field, fields
from typing import Any, get_type_hints

import pytest

from fathom.commands import bench
from fathom.commands.bench_ask import asking_of, origin_of
from fathom.commands.bench_config import DATASETS, FROM_A_FILE
from fathom.commands.bench_offline import latency
from fathom.commands.bench_save import wanted_of
from fathom.commands.bench_serve import GROUPS, parse
from fathom.commands.bench_target import ResultConfig, SamplingConfig, TargetConfig
from fathom.commands.foreign import Foreign
from fathom.commands.foreign_flags import foreign_flags
from fathom.errors import ConfigError
from fathom.perf.result import TITLES

SERVE_FOREIGN, OFFLINE_FOREIGN = foreign_flags("bench_serve"), foreign_flags("bench_offline")
FIELDS = [(title, one) for title, config in GROUPS for one in fields(config)]
HINTS = {title: get_type_hints(config) for title, config in GROUPS}
OWN = {flag for _, one in FIELDS for flag in one.metadata["flags"]} | {"--seed"}
# Flags of `vllm bench serve` and of SGLang's bench_serving: none of them may be "unknown".
IN_THE_WILD = """
--seed --num-prompts --dataset-name --no-stream --dataset-path --no-oversample --skip-chat-template
--enable-multimodal-chat --disable-shuffle --custom-output-len --spec-bench-output-len
--spec-bench-category --sonnet-input-len --sonnet-output-len --sonnet-prefix-len
--sharegpt-output-len --blazedit-min-distance --blazedit-max-distance --random-input-len
--random-output-len --random-range-ratio --random-prefix-len --random-batch-size --no-reranker
--random-mm-base-items-per-request --random-mm-num-mm-items-range-ratio
--random-mm-limit-mm-per-prompt --random-mm-bucket-config --hf-subset --hf-split --hf-name
--hf-output-len --prefix-repetition-prefix-len --prefix-repetition-suffix-len
--prefix-repetition-num-prefixes --prefix-repetition-output-len --label --backend --base-url --host
--port --endpoint --header --max-concurrency --model --input-len --output-len --tokenizer
--tokenizer-mode --use-beam-search --logprobs --request-rate --burstiness --probe-request-rate
--trust-remote-code --disable-tqdm --num-warmups --profile --save-result --save-detailed
--append-result --metadata --result-dir --result-filename --ignore-eos --self-timed
--percentile-metrics --metric-percentiles --goodput --request-id-prefix --top-p --top-k --min-p
--temperature --frequency-penalty --presence-penalty --repetition-penalty --served-model-name
--lora-modules --lora-assignment --ramp-up-strategy --ramp-up-start-rps --ramp-up-end-rps
--ready-check-timeout-sec --chat-template-kwargs --extra-body --skip-tokenizer-init --insecure
--plot-timeline --timeline-itl-thresholds --plot-dataset-stats --num-prompt --random-input
--random-output --output-file --output-details --disable-stream --disable-ignore-eos
--return-logprob --apply-chat-template --lora-name --prompt-suffix --pd-separated --flush-cache
--warmup-requests --tokenize-prompt --gsp-num-groups --gsp-prompts-per-group
--gsp-system-prompt-len --gsp-question-len --gsp-output-len --sharegpt-context-len
--extra-request-body --use-trace-timestamps --mooncake-slowdown-factor --mooncake-num-rounds
--mooncake-workload --timed-trace-chunk-hash-size --timed-trace-sec-multiplier
""".split()  # noqa: SIM905  # as people paste them


def sample(title: str, one: Field[Any]) -> tuple[list[str], Any]:
    """Further flags that it needs, the text of a value, and the value."""
    hint = HINTS[title][one.name]
    known: dict[str, tuple[list[str], Any]] = {
        "dataset_name": (["random"], "random"),
        "dataset_path": (["f", "--dataset-name", "custom"], "f"),
        "backend": (["openai-chat"], "openai-chat"),
        "endpoint": (["/v1/x"], "/v1/x"),
        "header": (["a=b"], ("a=b",)),
        "metadata": (["a=b"], ("a=b",)),
        "burstiness": (["0.5", "--request-rate", "2"], 0.5),
        "burst_size": (["4", "--request-rate", "2"], 4),
        "random_range_ratio": (["0.5"], 0.5),
        "think_time": (["0.5", "--max-concurrency", "2"], 0.5),
    }
    ramp = ["--ramp-up-start-rps", "1", "--ramp-up-end-rps", "2", "--ramp-up-strategy", "linear"]
    if one.name.startswith("ramp_up"):
        value: Any = {"start_rps": 1.0, "end_rps": 2.0, "strategy": "linear"}[one.name[8:]]
        return [str(value), *ramp], value
    for start in ("prefix_repetition_", "multi_turn_"):
        if one.name.startswith(start):
            kind: type = float if one.name.endswith("time") else int
            return ["7", "--dataset-name", start[:-1]], kind(7)
    for start in FROM_A_FILE:
        if one.name.startswith(f"{start}_"):
            kind = float if one.name.endswith("multiplier") else int
            return ["7", "--dataset-name", start, "--dataset-path", "f"], kind(7)
    if one.name in known:
        return known[one.name]
    if hint in (int, int | None):
        return ["12"], 12
    if hint in (float, float | None):
        return ["2.5"], 2.5
    return ["name"], ("name",) if hint == tuple[str, ...] else "name"


@pytest.mark.parametrize(("title", "one"), FIELDS, ids=lambda value: getattr(value, "name", ""))
def test_every_field_has_its_flags(title: str, one: Field[Any]) -> None:
    assert one.metadata["doc"]
    for flag in one.metadata["flags"]:
        if HINTS[title][one.name] is bool:
            files = ["--dataset-path", "f", "--dataset-name"]
            more = {
                "shuffle": [*files, "custom"],
                "oversample": [*files, "custom"],
                "self_timed": [*files, "timed_trace"],
            }.get(one.name, [])
            for text, value in ((flag, True), (flag.replace("--", "--no-", 1), False)):
                asked, _ = parse([text, *more])
                assert getattr(getattr(asked, title), one.name) is value
            continue
        words, value = sample(title, one)
        asked, _ = parse([flag, *words])
        assert getattr(getattr(asked, title), one.name) == value


@pytest.mark.parametrize("name", IN_THE_WILD)
def test_flags_in_the_wild_are_known(name: str) -> None:
    negatives = {flag.replace("--", "--no-", 1) for flag in OWN}
    assert name in OWN | negatives | {one for entry in SERVE_FOREIGN for one in entry.names}


@pytest.mark.parametrize("table", [SERVE_FOREIGN, OFFLINE_FOREIGN], ids=["serve", "offline"])
def test_own_and_foreign_flags_do_not_overlap(table: tuple[Foreign, ...]) -> None:
    names = [name for entry in table for name in entry.names]
    assert len(names) == len(set(names))
    assert table is OFFLINE_FOREIGN or not set(names) & OWN


@pytest.mark.parametrize("entry", SERVE_FOREIGN, ids=lambda entry: entry.names[0])
def test_foreign_flags_get_their_verdict(entry: Foreign) -> None:
    for name in entry.names:
        arguments = [name, *["zzz"] * entry.num_values]
        if entry.verdict == "accepted":
            assert [note.partition(":")[0] for note in parse(arguments)[1]] == [name]
        elif entry.verdict == "missing":
            with pytest.raises(ConfigError) as caught:
                parse(arguments)
            assert caught.value.what == f"{name} is not implemented yet: {entry.why}"
            assert entry.why
            assert caught.value.fix
    if entry.names[0] == "--insecure":
        assert parse(["--insecure"])[0].target.verify_tls is False
    if entry.names[0] == "--disable-shuffle":
        words = ["--disable-shuffle", "--dataset-name", "custom", "--dataset-path", "f"]
        assert parse(words)[0].dataset.shuffle is False


def test_defaults_are_vllms() -> None:
    asked, notes = parse([])
    assert notes == []
    assert asked.dataset.num_prompts == 1000
    assert (asked.dataset.random_input_len, asked.dataset.random_output_len) == (1024, 128)
    assert math.isinf(asked.traffic.request_rate)
    assert asked.traffic.burstiness == 1.0
    assert origin_of(asked.target).url == "http://127.0.0.1:8000"
    assert asked.seed == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--dataset-name nothing", "--dataset-name"),
        ("--dataset-name custom", "--dataset-path"),
        ("--dataset-path f", "--dataset-path"),
        ("--num-prompts 0", "--num-prompts"),
        ("--request-rate 0", "--request-rate"),
        ("--request-rate -1", "--request-rate"),
        ("--burstiness 2", "--burstiness"),
        ("--burst-size 2", "--burstiness"),
        ("--burst-size 2 --burstiness 2 --request-rate 1", "--burst-size"),
        ("--max-concurrency 0", "--max-concurrency"),
        ("--ramp-up-strategy linear", "--ramp-up-strategy"),
        ("--ramp-up-start-rps 1", "--ramp-up-strategy"),
        ("--ready-check-timeout-sec inf", "--ready-check-timeout-sec"),
        ("--backend tgi", "--backend"),
        ("--endpoint v1", "--endpoint"),
        ("--header a", "--header"),
        ("--metadata a", "--metadata"),
        ("--max-concurency 3", "--max-concurency"),
        ("--dataset-name prefix_repetition --random-input-len 3", "--random-input-len"),
        ("--shuffle", "--shuffle"),
        ("--self-timed", "--self-timed"),
        ("--timed-trace-chunk-hash-size 0", "--timed-trace-chunk-hash-size"),
        ("--sharegpt-output-len 3", "--sharegpt-output-len"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(words: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(words.split())
    assert named in caught.value.what


def test_a_misspelt_flag_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean --max-concurrency"):
        parse(["--max-concurency", "3"])


def test_metrics_percentiles_and_limits() -> None:
    results = ResultConfig(
        percentile_metrics="ttft, itl", metric_percentiles="50,99.9", goodput=("ttft:200", "e2el:3")
    )
    wanted = wanted_of(results)
    assert wanted.metrics == ("ttft", "itl")
    assert wanted.percents == (50.0, 99.9)
    assert dict(wanted.goodput_s) == {"ttft": 0.2, "e2el": 0.003}
    for wrong in (
        ResultConfig(percentile_metrics="ttf"),
        ResultConfig(metric_percentiles="101"),
        ResultConfig(metric_percentiles="x"),
        ResultConfig(goodput=("itl:3",)),
        ResultConfig(goodput=("ttft",)),
        ResultConfig(goodput=("ttft:-1",)),
    ):
        with pytest.raises(ConfigError):
            wanted_of(wrong)
    assert set(TITLES) == set(wanted_of(ResultConfig(percentile_metrics=",".join(TITLES))).metrics)


def test_bodies_have_what_was_given_and_nothing_else() -> None:
    plain = asking_of(TargetConfig(), SamplingConfig(), "m", 1.0, keeps_text=False)
    assert (dict(plain.options), plain.path) == ({}, "/v1/completions")
    full = SamplingConfig(
        temperature=0.0, top_k=3, ignore_eos=True, logprobs=2, extra_body='{"seed": 5, "top_k": 4}'
    )
    chat = asking_of(TargetConfig(backend="openai-chat"), full, "m", 1.0, keeps_text=False)
    assert chat.path == "/v1/chat/completions"
    assert dict(chat.options) == {
        "temperature": 0.0,
        "top_k": 4,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 5,
    }
    with pytest.raises(ConfigError, match="--backend"):
        asking_of(TargetConfig(endpoint="/v1/chat/completions"), full, "m", 1.0, keeps_text=False)
    with pytest.raises(ConfigError, match="--extra-body"):
        asking_of(TargetConfig(), SamplingConfig(extra_body="[]"), "m", 1.0, keeps_text=False)


def test_base_urls_may_end_in_v1() -> None:
    assert origin_of(TargetConfig(base_url="http://h:1/v1/")).url == "http://h:1"
    assert origin_of(TargetConfig(host="::1")).url == "http://[::1]:8000"


def test_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as left:
            bench.main(arguments)
        assert left.value.code == code
    assert "throughput" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean fathom bench serve"):
        bench.main(["server"])
    with pytest.raises(ConfigError, match="not implemented yet"):
        bench.main(["sweep"])
    with pytest.raises(ConfigError, match="--use-beam-search is not implemented yet"):
        latency(["--use-beam-search"])
    with pytest.raises(ConfigError, match="--batch-size"):
        latency(["--batch-size", "0"])
    with pytest.raises(ConfigError, match="--pipeline-parallel-size is not implemented"):
        latency(["--pipeline-parallel-size", "2"])


def test_every_dataset_is_of_one_kind() -> None:
    assert set(FROM_A_FILE) < set(DATASETS)
