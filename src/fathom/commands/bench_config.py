"""What a benchmark asks, as settings: each documented once; flags follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from fathom.config import check_setting, setting
from fathom.errors import ConfigError

DATASETS = (
    *("random", "prefix_repetition", "multi_turn"),
    *("sharegpt", "custom", "burstgpt", "timed_trace"),
)
FROM_A_FILE = ("sharegpt", "custom", "burstgpt", "timed_trace")
BACKENDS = {
    **dict.fromkeys(("openai", "vllm", "sglang", "sglang-oai"), "completions"),
    **dict.fromkeys(("openai-chat", "vllm-chat", "sglang-oai-chat"), "chat"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """What is asked of the server or engine."""

    dataset_name: str = setting(
        "random", "Where requests come from.", "--dataset-name", wanted=", ".join(DATASETS)
    )
    dataset_path: str | None = setting(
        None,
        "File of sharegpt (JSON), custom (JSON lines), burstgpt (CSV) or timed_trace (JSON "
        "lines as Mooncake's or {arrival, input, output, prefix_ids}; Azure's CSV).",
        "--dataset-path",
    )
    num_prompts: int = setting(1000, "Requests.", "--num-prompts", "--num-prompt")
    input_len: int | None = setting(
        None,
        "Tokens of a generated prompt: of its own part, where it shares another.",
        "--input-len",
        unit="tokens",
    )
    output_len: int | None = setting(
        None, "Tokens of an answer at most, for any dataset.", "--output-len", unit="tokens"
    )
    random_input_len: int = setting(
        1024, "Tokens of a random prompt.", "--random-input-len", "--random-input", unit="tokens"
    )
    random_output_len: int = setting(
        128, "Tokens of an answer to one.", "--random-output-len", "--random-output", unit="tokens"
    )
    random_range_ratio: float = setting(
        0.0,
        "Draws both lengths evenly from len * [1 - r, 1 + r].",
        "--random-range-ratio",
        wanted="a number in [0, 1)",
    )
    random_prefix_len: int = setting(
        0,
        "Tokens that open every random prompt, before its own.",
        "--random-prefix-len",
        "--prefix-len",
        unit="tokens",
    )
    prefix_repetition_prefix_len: int = setting(
        256,
        "Tokens of a shared prefix.",
        "--prefix-repetition-prefix-len",
        "--gsp-system-prompt-len",
        unit="tokens",
    )
    prefix_repetition_suffix_len: int = setting(
        256,
        "Tokens after it.",
        "--prefix-repetition-suffix-len",
        "--gsp-question-len",
        unit="tokens",
    )
    prefix_repetition_num_prefixes: int = setting(
        10, "Different prefixes.", "--prefix-repetition-num-prefixes", "--gsp-num-groups"
    )
    prefix_repetition_output_len: int = setting(
        128,
        "Tokens of an answer.",
        "--prefix-repetition-output-len",
        "--gsp-output-len",
        unit="tokens",
    )
    multi_turn_num_turns: int = setting(4, "Turns of a conversation.", "--multi-turn-num-turns")
    multi_turn_input_len: int = setting(
        128, "New tokens in a turn.", "--multi-turn-input-len", unit="tokens"
    )
    multi_turn_output_len: int = setting(
        128, "Tokens of an answer.", "--multi-turn-output-len", unit="tokens"
    )
    multi_turn_think_time: float = setting(
        1.0, "Time between an answer and the next turn.", "--multi-turn-think-time", unit="seconds"
    )
    sharegpt_output_len: int | None = setting(
        None,
        "Tokens of an answer; as in the file where not given.",
        "--sharegpt-output-len",
        unit="tokens",
    )
    custom_output_len: int | None = setting(
        256,
        "Tokens of an answer; -1 takes each line's output_tokens.",
        "--custom-output-len",
        unit="tokens",
    )
    timed_trace_sec_multiplier: float = setting(
        0.001,
        "Seconds that one of a trace's timestamps counts; more is slower.",
        "--timed-trace-sec-multiplier",
        unit="seconds",
    )
    timed_trace_chunk_hash_size: int = setting(
        512,
        "Tokens that one of its hash_ids stands for.",
        "--timed-trace-chunk-hash-size",
        unit="tokens",
    )
    shuffle: bool = setting(True, "Shuffle the requests of a file by the seed.", "--shuffle")
    oversample: bool = setting(True, "Repeat requests of a file that has too few.", "--oversample")

    def __post_init__(self) -> None:
        check = partial(check_setting, DatasetConfig)
        name, path = self.dataset_name, self.dataset_path
        check("dataset_name", name in DATASETS, name, f"one of {', '.join(DATASETS)}")
        is_file, files = name in FROM_A_FILE, ", ".join(FROM_A_FILE)
        check(
            "dataset_path",
            (path is not None) == is_file,
            path,
            f"a file with, and only with, {files}",
        )
        check("num_prompts", self.num_prompts >= 1, self.num_prompts, "1 or more")
        scale = self.timed_trace_sec_multiplier
        check("timed_trace_sec_multiplier", 0 < scale < math.inf, scale, "a number over 0")
        size = self.timed_trace_chunk_hash_size
        check("timed_trace_chunk_hash_size", size >= 1, size, "1 or more")
        for one in ("input_len", "output_len", "sharegpt_output_len", "custom_output_len"):
            value = getattr(self, one)
            check(one, value is None or value >= 1, value, "1 or more")


_GENERATED = ("random", "prefix_repetition", "multi_turn")
# Settings that mean something with these datasets only.
_ONLY_WITH: dict[str, tuple[str, ...]] = {
    **{f"{name}_": (name,) for name in (*_GENERATED, "sharegpt", "custom", "timed_trace")},
    "input_len": _GENERATED,
    "shuffle": ("sharegpt", "custom", "burstgpt"),
    "oversample": ("sharegpt", "custom", "burstgpt"),
    "self_timed": ("timed_trace",),
}


def check_given(dataset_name: str, given: Mapping[str, object]) -> None:
    """Raises: ConfigError for a setting (by its field's name) that this dataset has no use for; one
    that is turned off asks for what happens anyway."""
    for name, value in given.items():
        for start, datasets in _ONLY_WITH.items():
            if value is not False and name.startswith(start) and dataset_name not in datasets:
                raise ConfigError(
                    f"--{name.replace('_', '-')} says nothing about this dataset",
                    found=f"--dataset-name {dataset_name}",
                    wanted=" or ".join(datasets),
                    fix="leave it out",
                )
