"""Open-source coding agents in front of fathom, used from a command line as a person uses them.

    npm install --prefix ~/.cache/fathom-agent opencode-ai@1.18.33 \
        @mariozechner/pi-coding-agent@0.73.1
    .venv/bin/python -m bench.coding_agent [--agent opencode] [--api anthropic] [--keep DIRECTORY]

Each agent is asked to read a file, in each of its APIs, and asked again in the same session. The
embedded model, its positions stretched from 8,192 to 65,536 so that an agent's tools fit, will not
call one by itself: a proxy in between adds to the first request with tools a `tool_choice` for the
one that reads files, and a limit of reasoning. All else passes as it is. The agents have to read
every answer to its end, send the tool's result, and tell no error. They run in a home of their own
and may do nothing but read. It takes minutes and Node.js 20, so CI does not run it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.protocol import end_on_signal
from bench.recording_proxy import WAIT_S, Proxy
from bench.starting import first_line
from fathom.commands.bench_facts import machine_facts

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-coding-agent"
# Agents choose fields and beta headers by the name of the model: one that they know, one that not.
OWN_NAME, KNOWN_NAME = "fathom", "claude-opus-4-6"
POSITIONS = 65_536
SESSIONS = {
    "anthropic": ("anthropic", OWN_NAME),
    "anthropic-known": ("anthropic", KNOWN_NAME),
    "openai": ("openai", OWN_NAME),
    "responses": ("responses", OWN_NAME),
}
QUESTIONS = ("Read the file notes.txt and say what is in it.", "And in one word?")


@dataclass(frozen=True, slots=True)
class Agent:
    """A program under the MIT licence. `settings`, which lie at `settings_path` in its home, are
    made of its name of an API, its name of the model (provider/model), and an address."""

    package: str
    program: str
    settings_path: str
    apis: Mapping[str, str]
    settings: Callable[[str, str, str], dict[str, Any]]
    flags: tuple[str, ...]


def _opencode(npm: str, model_name: str, url: str) -> dict[str, Any]:
    """Its opencode.json. What would have to ask for permission is refused."""
    provider, name = model_name.split("/")
    limit = {"context": POSITIONS, "output": 512}
    model = {"name": name, "reasoning": True, "tool_call": True, "limit": limit}
    options = {"baseURL": f"{url}/v1", "apiKey": KEY}
    return {
        "provider": {provider: {"npm": npm, "options": options, "models": {name: model}}},
        "small_model": model_name,
        "autoupdate": False,
        "share": "disabled",
        "permission": {"*": "ask", "read": "allow"},
    }


def _pi(api: str, model_name: str, url: str) -> dict[str, Any]:
    """Its models.json."""
    provider, name = model_name.split("/")
    model = {"id": name, "reasoning": True, "contextWindow": POSITIONS, "maxTokens": 1536}
    base = url if api == "anthropic-messages" else f"{url}/v1"
    told = {"baseUrl": base, "api": api, "apiKey": KEY, "models": [model]}
    return {"providers": {provider: told}}


AGENTS = {
    "opencode": Agent(
        "opencode-ai",
        "opencode",
        ".config/opencode/opencode.json",
        {
            "anthropic": "@ai-sdk/anthropic",
            "openai": "@ai-sdk/openai-compatible",
            "responses": "@ai-sdk/openai",
        },
        _opencode,
        (
            *("run", "--format", "json", "--thinking", "--variant", "high"),
            *("--print-logs", "--log-level", "WARN"),
        ),
    ),
    "pi": Agent(
        "@mariozechner/pi-coding-agent",
        "pi",
        ".pi/agent/models.json",
        {
            "anthropic": "anthropic-messages",
            "openai": "openai-completions",
            "responses": "openai-responses",
        },
        _pi,
        ("-p", "--mode", "json", "--thinking", "low", "--tools", "read,grep,find,ls"),
    ),
}


@contextmanager
def _serving(directory: Path, name: str) -> Iterator[int]:
    """The port of a fathom that serves the stretched model. Its loops may go on to `max_tokens`:
    vLLM's finish_reason "repetition", which would end them, pi takes for an error."""
    command = [sys.executable, "-m", "fathom.cli", "serve", str(directory), "--port", "0"]
    command += ["--api-key", KEY, "--served-model-name", name, "--loop-guard-tokens", "0"]
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield int(first_line(server).rpartition(":")[2])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def _stretched(directory: Path) -> Path:
    """A copy of the embedded model with more positions. Answers get worse, their form does not."""
    shutil.copytree(ROOT / "src/fathom/weights/embedded", directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    scaling = config["rope_scaling"]
    scaling["factor"] = POSITIONS / scaling["original_max_position_embeddings"]
    config["max_position_embeddings"] = POSITIONS
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


def _asked(command: list[str], home: Path) -> dict[str, Any]:
    """One run of an agent: its exit status, its events by name, and the errors that it told."""
    quiet = ("OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_DEFAULT_PLUGINS", "PI_OFFLINE")
    own = {"HOME": str(home), "PATH": os.environ["PATH"], **dict.fromkeys(quiet, "1")}
    agent = subprocess.Popen(
        command, cwd=home / "work", env=own, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        told, log = agent.communicate(timeout=WAIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
    lines = [line for line in told.splitlines() if line.startswith("{")]
    signs = ('{"type":"error"', '"stopReason":"error"')
    errors = [line[-600:] for line in lines if any(sign in line for sign in signs)]
    errors += [line for line in log.splitlines() if "error" in line.lower()]
    events = Counter(str(json.loads(line)["type"]) for line in lines)
    return {"exit_status": agent.returncode, "events": events, "errors": errors}


def _wrong(
    runs: list[dict[str, Any]], requests: list[dict[str, Any]], **others: object
) -> Iterator[str]:
    """What was not as it has to be."""
    yield from (str(run) for run in runs if run["exit_status"] or run["errors"])
    for one in requests:
        # opencode has a title made beside the answer, and does not wait for it when that is there.
        is_read = one["is_whole"] or (one["is_left"] and not one["has_tools"])
        if one["status"] != 200 or not is_read:
            yield str(one)
    if not any(one["has_tool_result"] for one in requests):
        yield "no result of a tool was sent"
    if len(requests) > 1 and not any(one["cached_tokens"] for one in requests[1:]):
        yield "no request found its prefix in the cache"


def _session(agent: Agent, session: str, prefix: Path, keep: Path | None) -> dict[str, Any]:
    """Both questions to an agent, in one session of its own."""
    api, name = SESSIONS[session]
    # Called by Anthropic's name, a provider gets all that agents send to that one.
    model_name = f"{'anthropic' if api == 'anthropic' else 'fathom'}/{name}"
    with tempfile.TemporaryDirectory() as named:
        home = Path(named)
        (home / "work").mkdir()
        (home / "work/notes.txt").write_text("The tide is high at noon.\n", "utf-8")
        with _serving(_stretched(home / "model"), name) as port:
            proxy = Proxy(port)
            with proxy.listening() as url:
                path = home / agent.settings_path
                path.parent.mkdir(parents=True)
                settings = agent.settings(agent.apis[api], model_name, url)
                path.write_text(json.dumps(settings), "utf-8")
                command = [str(prefix / "node_modules/.bin" / agent.program), *agent.flags]
                command += ["--model", model_name]
                runs = [
                    _asked([*command, *again, question], home)
                    for again, question in zip(([], ["--continue"]), QUESTIONS, strict=True)
                ]
            volatile = _volatile_headers(port)
    if keep is not None:
        proxy.keep(keep / f"{agent.program}_{session}")
    told = {"machine": machine_facts(), "runs": runs, "volatile_prompt_headers": volatile}
    return told | proxy.told()


def _volatile_headers(port: int) -> float:
    """How many requests had a line that changes with every request, as fathom counts them."""
    headers = {"Authorization": f"Bearer {KEY}"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(asked, timeout=WAIT_S) as got:
        lines = got.read().decode().splitlines()
    name = "vllm:volatile_prompt_headers_total"
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def main() -> None:
    """Run the sessions, write what was seen beside the others, fail where something went wrong."""
    parser = argparse.ArgumentParser(description="Coding agents in front of fathom.")
    parser.add_argument("--agent", choices=AGENTS, nargs="+", default=list(AGENTS))
    parser.add_argument("--api", choices=SESSIONS, nargs="+", default=list(SESSIONS))
    parser.add_argument("--prefix", type=Path, default=Path.home() / ".cache/fathom-agent")
    parser.add_argument("--keep", type=Path, help="a directory for the bodies and the answers")
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/coding_agent.json")
    args = parser.parse_args()
    end_on_signal()
    results = json.loads(args.output.read_text("utf-8")) if args.output.exists() else {}
    results["questions"] = QUESTIONS
    wrong: list[str] = []
    for name in args.agent:
        agent = AGENTS[name]
        package = args.prefix / "node_modules" / agent.package / "package.json"
        told = json.loads(package.read_text("utf-8"))
        kept = {key: told[key] for key in ("name", "version", "license")}
        results[name] = {**results.get(name, {}), **kept}
        for api in args.api:
            results[name][api] = _session(agent, api, args.prefix, args.keep)
            wrong += [f"{name}, {api}: {one}" for one in _wrong(**results[name][api])]
    args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
