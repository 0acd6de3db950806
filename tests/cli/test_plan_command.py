"""`fathom plan` as a user meets it: against the two tables of messages, the schema, the engine's
own resolution of what it wrote, and a list of bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from string import Formatter

import pytest

from fathom import cli
from fathom.commands import plan_emit, serve
from fathom.commands.messages import LANGUAGES, read_words, table, width
from fathom.commands.plan import MOST_MACHINES, Answer, Machines, main, plan
from fathom.commands.plan_flags import parse
from fathom.commands.plan_text import told
from fathom.errors import CapacityError, ConfigError
from fathom.perf.advise import name_of
from fathom.perf.candidate import format_seconds
from fathom.perf.resolve import resolve
from fathom.runtime import nvml
from fathom.spec.catalogue import parse_cluster
from fathom.spec.hardware import Device, Machine
from fathom.spec.model import ModelSpec

SOURCES = Path(cli.__file__).parent
H20 = ["deepseek-v3", "--gpu", "8xH20-96"]


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "FATHOM_HARDWARE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def answer(*arguments: str) -> Answer:
    found = plan(parse(list(arguments)))
    assert isinstance(found, Answer)
    return found


def test_both_languages_have_the_same_messages_with_the_same_gaps() -> None:
    tables = [read_words("plan", one).table for one in LANGUAGES]

    def gaps(text: str) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(text) if name}

    english, chinese = (
        {
            (section, key): gaps(text)
            for section, part in table.items()
            for key, text in part.items()
        }
        for table in tables
    )
    assert english == chinese


def test_every_message_that_the_code_names_is_there() -> None:
    words = read_words("plan", "en").table
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in [*(SOURCES / "perf").glob("*.py"), *(SOURCES / "commands").glob("plan*.py")]
    )
    assert set(re.findall(r'reason\(\s*"(\w+)"', code)) <= set(words["reason"])
    assert set(re.findall(r'words\.error\(\s*"(\w+)"', code)) <= set(words["error"])
    for section, key in re.findall(r'words\(\s*"(\w+)\.(\w+)"', code):
        assert key in words[section]


def test_chinese_is_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    lines = told(answer(*H20, "--context", "128k"))
    assert lines[0].startswith("可以，但有限制")
    assert "要求 128,000 个" in lines[1]
    [heads] = [line for line in lines if "TTFT" in line and "TPOT" in line and "DP" in line]
    assert "权重" in heads
    assert not {"weights", "tokens"} & set(heads.split())
    english = told(answer(*H20, "--context", "128k", "--lang", "en"))
    assert english[0].startswith("YES, WITH LIMITS")
    assert len(english) == len(lines)
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    assert told(answer(*H20, "--context", "128k"))[0] == english[0]


def test_columns_line_up_whatever_the_characters() -> None:
    lines = table([["并行", "1"], ["ab", "22"], ["c", "并"]], indent="", right=(1,))
    assert lines == ["并行   1", "ab    22", "c     并"]
    assert {width(line) for line in lines} == {8}


def test_confidence_is_told() -> None:
    assert "roofline, with efficiencies" in "\n".join(told(answer(*H20)))
    measured = "\n".join(told(answer("deepseek-v3", "--gpu", "8xH200")))
    assert "measured on this GPU type" in measured


def test_the_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse_cluster("8xH200")
    monkeypatch.setattr(nvml, "installed_cluster", lambda catalogue: found)
    assert answer("deepseek-v3", "--gpu", "local").cluster == found
    monkeypatch.setattr(nvml, "installed_cluster", lambda catalogue: None)
    with pytest.raises(ConfigError, match="no GPU"):
        answer("deepseek-v3", "--gpu", "local")


def test_the_verdict_comes_first_and_everything_asked_for_follows() -> None:
    lines = told(answer(*H20, "--explain", "--cost", "hour=1.2,kwh=0.1,tokens=15g,api=2.94"))
    assert lines[0].startswith("YES, WITH LIMITS: deepseek-ai/DeepSeek-V3 in fp8")
    text = "\n".join(lines)
    assert "671.03B parameters (+11.61B for drafts); 641 GiB" in text
    assert "70,272 bytes of KV" in text
    assert "15,000,000,000 tokens a month: 44,100 USD at the API" in text
    assert "roofline" in text
    for label in ("Memory of the fullest device", "Layouts, the best first", "Energy", "How each"):
        assert label in text


def test_explain_has_every_line_of_the_ledger_and_of_the_step() -> None:
    found = answer(*H20, "--explain")
    text = "\n".join(told(found))
    for line in found.best.ledger:
        assert line.formula in text
    assert "experts" in text
    assert "bench/cost.py" in text


@pytest.mark.parametrize("code", ["import socket; socket.socket = None", "pass"])
def test_it_is_quick_light_and_offline(code: str, tmp_path: Path) -> None:
    """Under a second of this process's time, start and all, without torch or numpy."""
    script = (
        f"import sys, time\n{code}\nfrom fathom import cli\n"
        f"assert cli.main(['plan', *{H20!r}]) == 0\n"
        "heavy = {'torch', 'numpy', 'msgspec', 'tokenizers', 'ssl'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert time.process_time() < 1, time.process_time()"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, stdout=subprocess.DEVNULL
    )


def test_json_has_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*H20, "--json", "--explain", "--claim", "qps=1,isl=1000,osl=10,mean=30s"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "fathom-plan/1"
    assert set(shown) == {
        "schema", "model", "demand", "verdict", "cluster", "memory", "limit_bytes", "candidates",
        "changes", "costs", "most_users", "busiest", "against", "confidence", "intervals",
        "step",
    }  # fmt: skip
    best, second = shown["candidates"][:2]
    assert set(best) == {
        "layout", "weights", "is_exact", "kv", "batch_tokens", "fits", "over_bytes",
        "needed_bytes", "needed_kv_bytes", "kv_tokens", "context", "users", "shortfalls",
        "steady", "lost",
    }  # fmt: skip
    assert best["lost"] is None
    assert second["lost"]["text"]
    assert shown["model"]["main_parameters"] == 671_026_419_200
    assert sum(line["num_bytes"] for line in shown["memory"]) <= shown["limit_bytes"]
    assert main(["deepseek-v3", "--json", "--slo", "tpot=50ms"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"schema", "model", "demand", "machines"} == set(shown)
    assert {"gpu", "num_gpus", "hour", "currency", "price_source"} <= set(shown["machines"][0])


def test_what_was_planned_is_what_runs(tmp_path: Path) -> None:
    """The written file gives the engine the plan's layout, context, formats and page pool."""
    for gpu, more in (("8xH20-96", []), ("8xA100-80", ["--weights", "int4", "--context", "64k"])):
        found = answer("deepseek-v3", "--gpu", gpu, *more)
        path = tmp_path / "fathom.toml"
        notes = plan_emit.emit(found, path)
        assert any(str(path) in note for note in notes)
        is_other = any("does not run the first choice" in note for note in notes)
        config, _, _ = serve.parse(["--config", str(path)])
        again, _, _ = serve.parse(["--config", str(path)])
        assert config == again
        chosen = next(one for one in found.candidates if not plan_emit.lacking(one, found.cluster))
        assert is_other == (chosen is not found.best)
        size = found.cluster.gpu.memory_bytes
        machine = Machine(tuple(Device("cuda", "GPU", size, size) for _ in range(8)), 64)
        assert isinstance(found.model.spec, ModelSpec)
        run = resolve(config, found.model.spec, machine, str(config.model))
        assert run.layout == chosen.layout
        assert run.kv_tokens == chosen.kv_tokens
        assert run.ledger == chosen.ledger
        assert run.max_model_len == chosen.context
        assert run.quantization == chosen.precision.quantization
        assert (run.max_batch_tokens, run.max_sequences) == (
            chosen.working.max_batch_tokens,
            chosen.working.max_sequences,
        )


def test_what_the_engine_cannot_run_is_not_written(tmp_path: Path) -> None:
    for arguments in (["coder-33b", "--gpu", "4xL40S"], ["deepseek-v3", "--gpu", "16xH100-80"]):
        path = tmp_path / "fathom.toml"
        with pytest.raises(ConfigError, match="--emit"):
            plan_emit.emit(answer(*arguments), path)
        assert not path.exists()


@pytest.mark.parametrize(
    ("gpu", "slo", "more"),
    [
        ("8xH200", "tpot=25ms", []),
        ("8xH20-96", "ttft=1500ms,tpot=40ms", ["--users", "100"]),
        ("16xH100-80", "ttft=250ms", ["--context", "32k"]),
    ],
)
def test_missed_limits_offer_fewer_users(gpu: str, slo: str, more: list[str]) -> None:
    """And the flags that are told do what they say, with as many users and not with one more."""
    asked = ["deepseek-v3", "--gpu", gpu, "--kv", "bf16", "--slo", slo]
    found = answer(*asked, *more)
    keys = {one.key: dict(one.values) for one in found.changes}
    values = keys.get("change_users") or keys["change_context_users"]
    users, context = int(values["most"]), values.get("context", str(found.best.context))
    assert found.verdict == "limited"
    assert 0 < users == found.most_users < found.best.users
    with_fewer = [*asked, "--context", context, "--users"]
    assert answer(*with_fewer, str(users)).verdict == "yes"
    assert answer(*with_fewer, str(users + 1)).verdict == "limited"
    assert f"Users: {users} at a time" in "\n".join(told(found))


def test_limits_that_are_met_say_how_many_users_more() -> None:
    asked = ["deepseek-v3", "--gpu", "8xH200", "--kv", "bf16", "--slo", "tpot=50ms,ttft=5s"]
    found = answer(*asked, "--users", "4")
    assert found.verdict == "yes"
    assert found.most_users is not None
    assert found.most_users > 4
    assert answer(*asked, "--users", str(found.most_users)).verdict == "yes"
    assert answer(*asked, "--users", str(found.most_users + 1)).verdict == "limited"
    nobody = answer("deepseek-v3", "--gpu", "8xH200", "--slo", "tpot=1ms")
    assert nobody.most_users == 0
    assert "not even one" in "\n".join(told(nobody))


def test_the_search_shows_what_a_plan_of_the_machine_shows() -> None:
    """The search tries few layouts, so that its figures could be below those of `--gpu`."""
    demand = ["deepseek-v3", "--slo", "tpot=50ms", "--users", "32"]
    found = plan(parse(demand))
    assert isinstance(found, Machines)
    assert len(found.options) == MOST_MACHINES
    for option in found.options[::3]:
        one = answer(*demand, "--gpu", name_of(option.cluster))
        assert one.verdict == "yes"
        assert one.best.layout == option.best.layout
        assert one.best.steady == option.best.steady


def test_parts_of_the_first_token_are_explained() -> None:
    found = answer("deepseek-v3", "--gpu", "8xH200", "--explain")
    assert found.best.steady is not None
    assert found.best.steady.ahead_s > 0
    [line] = [one for one in told(found) if "steps planned before it came" in one]
    assert line.endswith(format_seconds(found.best.steady.ttft_s))


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    claim = ["deepseek-v3", "--gpu", "8xH100-80", "--claim", "qps=127,isl=512,mean=68ms"]
    assert main(claim) == CapacityError.exit_code
    assert capsys.readouterr().out.startswith("THE CLAIM DOES NOT HOLD")
    assert main(["deepseek-v3", "--gpu", "4xRTX6000-Ada"]) == CapacityError.exit_code
    assert capsys.readouterr().out.startswith("NO: ")


BAD = [
    (["deepsek-v3"], "DeepSeek-V3"),
    (["deepseek-v3", "--gpu", "8xH21-96"], "h20-sxm-96"),
    (["deepseek-v3", "--gpu", "8xH20"], "several sizes"),
    (["deepseek-v3", "--gpu", "0xH200"], "at least one GPU"),
    (["deepseek-v3", "--gpu", "8xH200", "--nodes", "-1"], "--nodes"),
    (["deepseek-v3", "--gpu", "8xH200", "--network", "ib-nrd"], "ib-ndr"),
    (["deepseek-v3", "--context", "lots"], "--context"),
    (["deepseek-v3", "--context", "1m"], "longer than the model"),
    (["deepseek-v3", "--context", "1000"], "--isl and --osl"),
    (["deepseek-v3", "--users", "0"], "--users"),
    (["deepseek-v3", "--isl", "0"], "--isl"),
    (["deepseek-v3", "--cached", "5000"], "--cached"),
    (["deepseek-v3", "--slo", "ttft=2s,ttft=3s"], "twice"),
    (["deepseek-v3", "--slo", "ttft=3s,e2e=2s"], "contradicts"),
    (["deepseek-v3", "--slo", "tptt=3s"], "tpot="),
    (["deepseek-v3", "--slo", "tpot=-3s"], "--slo tpot"),
    (["deepseek-v3", "--slo", "tpot=nan"], "--slo tpot"),
    (["deepseek-v3", "--slo", "tpot"], "--slo"),
    (["deepseek-v3", "--slo", ""], "--slo says nothing"),
    (["deepseek-v3", "--cost", ", ,"], "--cost says nothing"),
    (["deepseek-v3", "--gpu", "2xepyc-9654"], "the CPU EPYC 9654"),
    (["deepseek-v3", "--cost", "hour=free"], "--cost hour"),
    (["deepseek-v3", "--cost", "utilization=150%"], "utilization"),
    (["deepseek-v3", "--cost", "api=deepseek-x"], "deepseek-v3.1"),
    (["deepseek-v3", "--cost", "api=1/2"], "hit/miss/output"),
    (["deepseek-v3", "--gpu-memory-utilization", "1.5"], "(0, 1]"),
    (["deepseek-v3", "--gpu", "8xH200", "--layout", "tp=3"], "heads"),
    (["deepseek-v3", "--gpu", "8xH200", "--layout", "tp=0"], "layout"),
    (["deepseek-v3", "--gpu", "8xH200", "--layout", "tp=4"], "a rank for each GPU"),
    (["deepseek-v3", "--gpu", "8xA100-80", "--weights", "fp8"], "no FP8"),
    (["deepseek-v3", "--weights", "fp6"], "fp6"),
    (["deepseek-v3", "--gpu", "9999999xH200"], "at most 16384"),
    (["deepseek-v3", "--gpu", "16xH200", "--network", "ib"], "--network"),
    (["deepseek-v3", "--gpu", "10007xH200"], "no layout"),
    (["deepseek-v3", "--claim", "isl=5,mean=1s"], "--claim"),
    (["deepseek-v3", "--gpu", "8xH200", "--claim", "qps=5"], "--claim lacks mean"),
    (["deepseek-v3", "--gpu", "8xH200", "--claim", "mean=1s"], "--claim lacks isl"),
    (["deepseek-v3", "--gpu", "8xH200", "--claim", "isl=0,mean=1s"], "--claim isl"),
    (["deepseek-v3", "--gpu", "8xH200", "--claim", "isl=5,osl=x,mean=1s"], "--claim osl"),
    (["deepseek-v3", "--emit", "x.toml"], "--emit"),
    (["deepseek-v3", "--nodes", "2", "--layout", "tp=8"], "--nodes, --layout"),
    (["deepseek-v3", "--gpu", "local", "--nodes", "2"], "--gpu local"),
    (["deepseek-v3", "--isl", "200000"], "longer than the model"),
    (["deepseek-v3", "--lang", "fr"], "--lang"),
    (["deepseek-v3", "--lang"], "--lang"),
    (["deepseek-v3", "--hardware", "/nowhere.toml"], "--hardware"),
    (["deepseek-v3", "--prices", "/nowhere.toml"], "--prices"),
    (["deepseek-v3", "--gpus", "8xH200"], "--gpu"),
    ([], "MODEL"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_a_clear_error(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *arguments]) == ConfigError.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert "Traceback" not in shown.err


def test_awq_of_33b_fits_one_card_of_24_gb(tmp_path: Path) -> None:
    """DeepSeek-Coder-33B as AutoAWQ stores it: 4 bits, groups of 128."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 7168,
        "intermediate_size": 19200, "num_hidden_layers": 62, "num_attention_heads": 56,
        "num_key_value_heads": 8, "vocab_size": 32256, "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-6, "torch_dtype": "float16", "quantization_config": {
            "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
            "version": "gemm",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = answer(str(tmp_path), "--gpu", "1xRTX4090", "--context", "8k")
    assert found.verdict == "yes"
    assert found.best.precision.name == "int4"


def test_own_errors_are_told_in_chinese(capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["plan", "deepseek-v3", "--lang", "zh", "--slo", "ttft=3s,e2e=2s"]
    assert cli.main(bad) == ConfigError.exit_code
    assert "自相矛盾" in capsys.readouterr().err


def test_a_model_on_disk_and_hardware_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
                "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
            }
        )
    )  # fmt: skip
    hardware = tmp_path / "mine.toml"
    hardware.write_text(
        '[[gpu]]\nid = "mine-24"\nlike = "rtx4090-24"\nname = "Mine"\nnames = ["mine"]\n'
    )
    prices = tmp_path / "prices.toml"
    prices.write_text('[[gpu]]\nid = "mine-24"\nhour = 0.5\n')
    arguments = [str(tmp_path), "--gpu", "1xmine-24", "--hardware", str(hardware)]
    assert main([*arguments, "--prices", str(prices)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("YES")
    assert "0.50 USD an hour" in text
