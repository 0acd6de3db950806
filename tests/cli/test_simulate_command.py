"""`fathom simulate` as people type it, against the numbers of its own parts and against what must
be refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fathom.cli import main

SMALL = ["--num-prompts", "20", "--input-len", "300", "--output-len", "20"]
H20 = ["simulate", "R1", "--gpu", "8xH20-141"]


def numbers(capsys: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> dict[str, Any]:
    assert main([*H20, "--json", *flags]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_same_seed_prints_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--json", *SMALL, "--request-rate", "5", "--seed"]
    outputs = []
    for seed in ("3", "3", "4"):
        assert main([*H20, *flags, seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_what_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = numbers(capsys, *SMALL, "--request-rate", "5", "--goodput", "ttft:1000", "tpot:100")
    assert told["schema"] == "fathom.simulate/1"
    assert (told["completed"], told["total_output_tokens"]) == (20, 400)
    assert told["request_goodput"] == told["request_throughput"] > 0
    assert told["about"]["Layout"] == "tp=8 dp=1 ep=1 pp=1"
    assert main([*H20, *SMALL, "--request-rate", "5"]) == 0
    text = capsys.readouterr().out
    assert "Simulated Serving Result" in text
    assert "P99 TTFT (ms):" in text


def test_dp_attention_multiplies_the_kv(capsys: pytest.CaptureFixture[str]) -> None:
    one = numbers(capsys, *SMALL)["about"]
    eight = numbers(capsys, *SMALL, "-dp", "8")["about"]
    assert eight["Layout"] == "tp=1 dp=8 ep=8 pp=1"
    assert one["KV"].startswith("1 x ")
    assert eight["KV"].startswith("8 x ")


def test_a_loop_of_users_who_think(capsys: pytest.CaptureFixture[str]) -> None:
    loop = [*SMALL, "--max-concurrency", "4", "--think-time"]
    fast, slow = (numbers(capsys, *loop, think) for think in ("0", "10"))
    assert [one["is_closed_loop"] for one in (fast, slow)] == [True, True]
    assert slow["max_concurrent_requests"] <= 4
    # Five requests of each user, and four pauses.
    assert slow["duration"] == pytest.approx(40 + fast["duration"], rel=0.1)


def test_traces_of_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    row = {"timestamp": 0, "input_length": 2000, "output_length": 5, "hash_ids": [1, 2, 3, 4]}
    path.write_text("\n".join(json.dumps(row | {"timestamp": 5000 * i}) for i in range(4)))
    flags = ["--dataset-name", "timed_trace", "--dataset-path", str(path)]
    told = numbers(capsys, *flags)
    assert told["completed"] == 4
    assert told["prefix_hit_percent"] == pytest.approx(100 * 3 * 1984 / 8000)
    path.write_text('{"timestamp": 0, "input_length": 20, "output_length": "many"}')
    assert main([*H20, *flags]) == 2
    error = capsys.readouterr().err
    assert f"{path}: line 1, column 55" in error
    assert "many" in error


def test_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace, html = tmp_path / "trace.json", tmp_path / "page.html"
    numbers(capsys, *SMALL, "--trace", str(trace), "--html", str(html))
    assert json.loads(trace.read_bytes())["traceEvents"]
    assert html.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("flag", ["--html", "--trace"])
@pytest.mark.parametrize("name", ["no/page.html", "."])
def test_files_that_cannot_be_written_are_refused_before_the_run(
    flag: str, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*H20, *SMALL, flag, str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert flag in shown.err
    assert not shown.out


def test_drafts(capsys: pytest.CaptureFixture[str]) -> None:
    """The better the drafts, the fewer steps; their layers take memory, and of dense models there
    are none."""
    drafts = [*SMALL, "--num-speculative-tokens", "1", "--draft-acceptance"]
    none, bad, good = numbers(capsys, *SMALL), *(numbers(capsys, *drafts, p) for p in ("0", "0.9"))
    assert good["num_steps"] < none["num_steps"] <= bad["num_steps"]
    assert good["total_output_tokens"] == none["total_output_tokens"] == 400
    assert good["spec_decode_acceptance_rate"] == pytest.approx(90, abs=8)
    assert bad["spec_decode_accepted_tokens"] == 0
    assert good["about"]["Drafts"] == "1 a step, 90% of them right"
    assert kv_tokens(good) < kv_tokens(none)


def kv_tokens(told: dict[str, Any]) -> int:
    return int(told["about"]["KV"].split()[2].replace(",", ""))


def test_a_dense_model_with_a_cache_in_fp8(capsys: pytest.CaptureFixture[str]) -> None:
    dense = ["simulate", "coder-33b", "--gpu", "4xL40S", "--json", *SMALL]
    found = []
    for dtype in ("auto", "fp8"):
        assert main([*dense, "--kv-cache-dtype", dtype]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert kv_tokens(found[1]) == pytest.approx(2 * kv_tokens(found[0]), rel=0.01)


def test_requests_that_cannot_run_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    told = numbers(capsys, *SMALL, "--max-model-len", "310", code=1)
    assert told["failed"] == 20
    assert "max_tokens" in told["errors_by_kind"]["http_400"]["first"]
    assert main([*H20, *SMALL, "--max-model-len", "310"]) == 1
    text = capsys.readouterr().out
    assert "No request was answered" in text
    assert "20 failed: http_400" in text
    assert "TTFT" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["R2", "--gpu", "8xH20-96"], "R1"),
        (["R1", "--gpu", "8xH21"], "h20-3e-141"),
        (["R1"], "--gpu"),
        (["R1", "--gpu", "8xH100-80"], "does not fit"),
        (["R1", "--gpu", "8xH20-141", "--tp", "16"], "does not divide"),
        (["R1", "--gpu", "8xH20-141", "-dp", "3"], "does not divide"),
        (["R1", "--gpu", "8xH20-141", "--ep", "7"], "ep"),
        (["R1", "--gpu", "8xH20-141", "--max-model-len", "2M"], "max_model_len"),
        (["R1", "--gpu", "8xH20-141", "--quantization", "awq"], "int8"),
        (["R1", "--gpu", "8xH20-141", "--routing", "random"], "round_robin"),
        (["R1", "--gpu", "8xH20-141", "--request-rate", "-1"], "--request-rate"),
        (["R1", "--gpu", "8xH20-141", "--request-rate", "nan"], "--request-rate"),
        (["R1", "--gpu", "8xH20-141", "--num-prompts", "0"], "--num-prompts"),
        (["R1", "--gpu", "8xH20-141", "--think-time", "1"], "--max-concurrency"),
        (["R1", "--gpu", "8xH20-141", "--goodput", "ttft=1"], "--goodput"),
        (
            ["R1", "--gpu", "8xH20-141", "--dataset-name", "sharegpt", "--dataset-path", "x"],
            "texts",
        ),
        (["R1", "--gpu", "16xA100-80"], "does not fit"),  # FP8 weights in 16 bits, as planned
        (["R1", "--gpu", "8xA100-80", "-q", "fp8"], "no FP8"),
        (["R1", "--gpu", "8xH20-141", "--calibration", "nowhere"], "--calibration"),
        (["R1", "--gpu", "8xH20-141", "-pp", "3"], "does not divide"),
        (["R1", "--gpu", "8xH20-141", "--pp", "0"], "1 or more"),
        (["R1", "--gpu", "2xepyc-9654"], "the CPU EPYC 9654"),
        (["R1", "--gpu", "8xH20-141", "--draft-acceptance", "2"], "0 to 1"),
        (["coder-33b", "--gpu", "4xL40S", "--num-speculative-tokens", "1"], "no MTP layer"),
        (["R1", "--gpu", "8xH20-141", "--request-rates", "1"], "--request-rate"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) in (2, 4)
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


def test_it_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from fathom.cli import main\n"
        f"main({[*H20, *SMALL, '--json']!r})\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)
