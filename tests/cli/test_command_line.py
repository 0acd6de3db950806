"""Compares what commands load, print and exit with against the table of subcommands and errors."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from fathom import __version__, cli
from fathom.commands import serve
from fathom.errors import CapacityError, ConfigError, FathomError

HEAVY = ("torch", "numpy", "uvicorn", "uvloop", "tokenizers", "msgspec", "httptools")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["version"], ["--version"], ["serve", "--help"], ["chat", "--help"],
                  ["run", "--help"], ["serve", "--mem-fraction-static", "0.8"], ["nonsense"]],
)  # fmt: skip
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    """The bar is 150 ms; what costs is imports, and these can be counted on a busy machine."""
    code = (
        "import sys\nfrom fathom import cli\n"
        f"try:\n    cli.main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_the_api_process_loads_no_torch() -> None:
    code = (
        "import sys, fathom.server.run, fathom.commands.in_process\n"
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_subcommand_is_where_the_table_says() -> None:
    for name in cli.COMMANDS:
        if name != "version":
            with pytest.raises(SystemExit) as caught:
                cli.main([name, "--help"])
            assert caught.value.code == 0


def test_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in cli.COMMANDS)
    assert cli.main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert cli.main(["version", "x"]) == 2


def test_unknown_subcommand_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sevre"]) == 2
    told = capsys.readouterr().err
    assert "did you mean fathom serve?" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("x"), 2), (CapacityError("x"), 4), (FathomError("x"), 1)]
)
def test_errors_become_exit_codes(
    error: FathomError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(serve, "main", fail)
    assert cli.main(["serve"]) == code


def test_an_error_is_said_part_by_part() -> None:
    error = ConfigError("--port 80 is in use", found="process 7", fix="give another --port")
    assert cli.say(error).splitlines() == [
        "fathom: --port 80 is in use",
        "  found:  process 7",
        "  fix:    give another --port",
    ]


@pytest.mark.parametrize("name", ["fathom", "it's", 'a"b', "模型"])
def test_the_banners_curl_line_is_a_command(name: str) -> None:
    from dataclasses import replace

    from fathom.spec.deepseek import parse_config
    from fathom.spec.formats import FLOAT32
    from fathom.spec.parallel import Layout
    from fathom.spec.plan import DeploymentPlan
    from fathom.weights.embedded import embedded_path

    plan = DeploymentPlan(
        model_path="/models/x",
        served_names=(name,),
        model=parse_config(json.loads((embedded_path() / "config.json").read_text())),
        layout=Layout(),
        device="cpu",
        compute_dtype=FLOAT32,
        kv_dtype=FLOAT32,
        page_size=64,
        num_pages=10,
        max_model_len=512,
        max_batch_tokens=256,
        max_sequences=8,
        max_queued=16,
        num_drafts=0,
        run_ahead=1,
        prefix_cache=True,
        threads=1,
        seed=0,
        step_timeout_s=10.0,
        ledger=(),
        decisions=(),
    )
    text = serve.banner("http://127.0.0.1:8000", plan, needs_key=False)
    words = shlex.split(text[text.index("\ncurl ") :].replace("\\\n", ""))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert words[2:4] == ["-H", "Content-Type: application/json"]
    assert json.loads(words[words.index("-d") + 1])["model"] == name
    assert "640 tokens" in text
    locked = serve.banner("http://127.0.0.1:8000", replace(plan), needs_key=True)
    assert "$FATHOM_API_KEY" in locked
