"""Flags of vLLM's and SGLang's benchmarks that are none of fathom's: accepted, read, or refused."""

from __future__ import annotations

from fathom.commands.foreign import Foreign, Verdict


def _one(verdict: Verdict, names: str, why: str, num_values: int, fix: str = "") -> Foreign:
    return Foreign(
        names=tuple(names.split()), verdict=verdict, why=why, fix=fix, num_values=num_values
    )


def _missing(names: str, why: str, num_values: int = 1, fix: str = "leave it out") -> Foreign:
    return _one("missing", names, why, num_values, fix)


def _accepted(names: str, why: str, num_values: int = 0) -> Foreign:
    return _one("accepted", names, why, num_values)


def _read_as(name: str, *own: str) -> Foreign:
    return Foreign(
        names=(name,), verdict="translated", why="", num_values=0, into=lambda _: list(own)
    )


_DATASETS = "this dataset is not read"
_CUSTOM = "--dataset-name custom with its prompts"
_TRACE = "--dataset-name timed_trace"
_PROFILE = "there is no profiler"
_LORA = "adapters are not served"

_BOTH = (
    _accepted("--trust-remote-code", "fathom runs no code from a checkpoint"),
    _missing("--profile", _PROFILE, 0),
    _missing("--use-beam-search", "there is no beam search", 0),
    _missing("--tokenizer-mode", "there is one kind of tokenizer"),
    _missing("--lora-modules --lora-assignment --lora-path --lora-name", _LORA),
    _missing("--hf-subset --hf-split --hf-name --hf-output-len", _DATASETS, 1, _CUSTOM),
    _missing("--no-stream", _DATASETS, 0, _CUSTOM),
    _missing(
        "--sonnet-input-len --sonnet-output-len --sonnet-prefix-len --spec-bench-output-len "
        "--spec-bench-category --blazedit-min-distance --blazedit-max-distance "
        "--speed-bench-output-len --speed-bench-dataset-subset --speed-bench-category "
        "--txt-slices-input-len --txt-slices-output-len",
        _DATASETS,
        1,
        _CUSTOM,
    ),
    _missing(
        "--random-mm-base-items-per-request --random-mm-num-mm-items-range-ratio "
        "--random-mm-limit-mm-per-prompt --random-mm-bucket-config --random-image-num-images "
        "--random-image-resolution --image-count --image-resolution --image-format",
        "fathom's models read text only",
    ),
    _missing("--enable-multimodal-chat", "fathom's models read text only", 0),
    _missing("--random-batch-size", "embeddings and rerankers are not measured"),
    _missing("--no-reranker", "embeddings and rerankers are not measured", 0),
    _read_as("--disable-shuffle", "--no-shuffle"),
)

SERVE_FOREIGN = (
    *_BOTH,
    _read_as("--insecure", "--no-verify-tls"),
    _read_as("--disable-tqdm", "--no-progress"),
    _accepted("--skip-chat-template", "prompts go out as they stand"),
    _accepted("--skip-tokenizer-init", "a tokenizer is read only where a dataset needs one"),
    _accepted("--disable-ignore-eos", "answers may end early unless --ignore-eos is given"),
    _accepted("--tokenize-prompt", "random prompts go out as token ids to /v1/completions"),
    _missing(
        "--chat-template-kwargs",
        "prompts are not rendered by the client",
        1,
        "--backend openai-chat --extra-body '{\"chat_template_kwargs\": ...}'",
    ),
    _missing("--apply-chat-template", "the server renders", 0, "--backend openai-chat"),
    _missing("--probe-request-rate", "every request is of the workload"),
    _missing("--plot-timeline --plot-dataset-stats", "there are no plots", 0, "--save-detailed"),
    _missing("--timeline-itl-thresholds", "there are no plots", 1, "--save-detailed"),
    _missing("--flush-cache", "the cache is the server's", 0, "start the server again"),
    _missing("--disable-stream", "what is measured is a stream", 0),
    _missing("--return-logprob", "SGLang's native API is not spoken", 0, "--logprobs N"),
    _missing("--return-routed-experts --pd-separated --lora-request-distribution", _LORA, 0),
    _missing("--profile-num-steps --profile-activities --profile-start-step", _PROFILE),
    _missing("--output-file", "results have vLLM's flags", 1, "--save-result --result-filename F"),
    _missing("--output-details", "results have vLLM's flags", 0, "--save-detailed"),
    _missing("--gsp-prompts-per-group", "it follows", 1, "--num-prompts / --gsp-num-groups"),
    _missing("--sharegpt-context-len --prompt-suffix", "prompts go out as they stand"),
    _missing(
        "--mooncake-slowdown-factor --mooncake-num-rounds --mooncake-workload",
        _DATASETS,
        1,
        _TRACE,
    ),
    _missing("--use-trace-timestamps", "a timed_trace brings its own", 0, _TRACE),
)

OFFLINE_FOREIGN = (
    *_BOTH,
    _accepted("--disable-tqdm", "there is no bar"),
    _missing("--dataset", "vLLM gave it up", 1, "--dataset-name sharegpt --dataset-path FILE"),
    _missing("--backend", "the engine is fathom's"),
    _missing("--hf-max-batch-size", "the engine is fathom's"),
    _missing("--async-engine", "the engine is driven in this process", 0, "fathom bench serve"),
    _missing("--disable-detokenize", "answers are always text too", 0),
    _missing("--profile-result-dir", _PROFILE),
    _missing("--result-filename", "offline results have one place", 1, "--output-json FILE"),
)
