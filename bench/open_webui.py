"""Open WebUI in front of fathom, used as a person uses it: one chat streamed, one stopped.

    apt-get install chromium
    python3.11 -m venv /tmp/open-webui
    /tmp/open-webui/bin/pip install open-webui==0.12.4 playwright==1.65.2
    /tmp/open-webui/bin/python bench/open_webui.py [--python .venv/bin/python]

The chat is typed into the page in a headless Chromium. Its answer must grow on the page before it
is whole, and be what fathom answers to the same messages. Another one, which would go on for
minutes, is stopped with the page's button, after which fathom must be idle. A picture of either
lies beside the result. It takes minutes, and gigabytes of packages, so CI does not run it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, TimeoutError, sync_playwright
from starting import first_line

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-open-webui"
QUESTION = "Tell me something about the sea."
WAIT_S = 240.0


def _get(url: str, body: object = None, token: str = KEY) -> Any:
    raw = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, raw, headers), timeout=60) as got:
        text = got.read()
    return json.loads(text) if text[:1] in b"[{" else text.decode()


def _until(is_true: Callable[[], bool], what: str) -> float:
    """Seconds until something is true. Raises: RuntimeError that says what never was."""
    began_s = time.monotonic()
    while not is_true():
        if time.monotonic() - began_s > WAIT_S:
            raise RuntimeError(what)
        time.sleep(0.01)
    return time.monotonic() - began_s


@contextmanager
def _running(command: list[str], **more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _open_webui(directory: str, fathom: str, port: int) -> Any:
    """Open WebUI with one user and one connection: fathom."""
    program = Path(sys.executable).parent / "open-webui"
    return _running(
        ["sh", "-c", f"exec {program} serve --host 127.0.0.1 --port {port} >&2"],
        DATA_DIR=directory,
        WEBUI_AUTH="False",
        WEBUI_SECRET_KEY="of-a-test",
        OFFLINE_MODE="true",
        HF_HUB_OFFLINE="1",
        ENABLE_OLLAMA_API="False",
        OPENAI_API_BASE_URL=f"{fathom}/v1",
        OPENAI_API_KEY=KEY,
        BYPASS_EMBEDDING_AND_RETRIEVAL="true",
        RAG_EMBEDDING_ENGINE="openai",
        # The tools that it offers every model take more room than the embedded model has.
        DEFAULT_MODEL_METADATA='{"capabilities": {"builtin_tools": false}}',
        DEFAULT_MODEL_PARAMS='{"temperature": 0}',
        # Further questions behind the user's back: how soon fathom is idle would say nothing.
        ENABLE_TITLE_GENERATION="False",
        ENABLE_TAGS_GENERATION="False",
        ENABLE_FOLLOW_UP_GENERATION="False",
    )


def _is_up(url: str) -> bool:
    try:
        return bool(_get(f"{url}/health"))
    except OSError:
        return False


def _gauge(fathom: str, name: str) -> float:
    for line in _get(f"{fathom}/metrics").splitlines():
        if line.startswith(f"vllm:{name}{{"):
            return float(line.rpartition(" ")[2])
    raise LookupError(name)


def _endless_model(webui: str, model: str) -> str:
    """A preset of Open WebUI's that never ends by itself."""
    token = _get(f"{webui}/api/v1/auths/signin", {"email": "", "password": ""})["token"]
    preset = {
        "id": "endless",
        "name": "endless",
        "base_model_id": model,
        "meta": {},
        "params": {"custom_params": {"ignore_eos": True}},
    }
    _get(f"{webui}/api/v1/models/create", preset, token)
    return "endless"


class _Page:
    """The page of Open WebUI, as its user sees it."""

    def __init__(self, page: Page, webui: str) -> None:
        self._page, self._webui = page, webui

    def ask(self, model: str, question: str) -> None:
        """Open a new chat, close what greets the user, type and send."""
        self._page.goto(f"{self._webui}/?models={model}", wait_until="domcontentloaded")
        self._page.wait_for_selector("#chat-input", timeout=WAIT_S * 1000)
        greeting = self._page.get_by_text("Okay, Let's Go!")
        with suppress(TimeoutError):  # it greets a user once only
            greeting.click(timeout=5000)
        self._page.click("#chat-input")
        self._page.keyboard.type(question)
        self._page.keyboard.press("Enter")

    def answer(self) -> str:
        """What of the answer the page shows."""
        found = self._page.query_selector("#response-content-container")
        return "" if found is None else str(found.inner_text()).strip()

    def stop(self) -> None:
        """Press the button that stops an answer."""
        self._page.get_by_label("Stop").first.click(timeout=30_000)


def _whole(page: _Page, fathom: str, model: str) -> dict[str, Any]:
    """An answer that is fathom's."""
    page.ask(model, QUESTION)
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    told = _get(f"{fathom}/v1/chat/completions", {**body, "temperature": 0})
    wanted = told["choices"][0]["message"]["content"].strip()
    _until(lambda: page.answer() == wanted, f"not {wanted!r}")
    return {"question": QUESTION, "answer": wanted}


def _stopped(page: _Page, fathom: str, model: str) -> dict[str, Any]:
    """An answer that would go on for minutes, stopped when it has been seen to grow."""
    page.ask(model, QUESTION)
    lengths = [0]

    def has_grown() -> bool:
        lengths.append(max(lengths[-1], len(page.answer())))
        return len(set(lengths)) > 5 and lengths[-1] > 100

    _until(has_grown, "the answer does not grow")
    running = _gauge(fathom, "num_requests_running")
    page.stop()
    free_s = _until(
        lambda: _gauge(fathom, "num_requests_running") == 0, "fathom goes on after the stop"
    )
    kept = page.answer()
    time.sleep(1.0)
    assert page.answer() == kept
    return {
        "lengths_seen": sorted(set(lengths)),
        "running_before": running,
        "idle_after_s": free_s,
        "length_kept": len(kept),
    }


def _in_browser(chromium: str, fathom: str, webui: str, shots: Path) -> dict[str, Any]:
    model = _get(f"{fathom}/v1/models")["data"][0]["id"]
    endless = _endless_model(webui, model)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1000, "height": 700})
        page = _Page(opened, webui)
        whole = _whole(page, fathom, model)
        opened.screenshot(path=f"{shots}_whole.png")
        stopped = _stopped(page, fathom, endless)
        opened.screenshot(path=f"{shots}_stopped.png")
        return {"chromium": browser.version, "whole": whole, "stopped": stopped}


def main() -> None:
    """Run it, and write the result and the pictures beside it."""
    parser = argparse.ArgumentParser(description="Open WebUI in front of fathom.")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="fathom's")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--port", type=int, default=8413)
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/open_webui.json")
    args = parser.parse_args()
    serve = [args.python, "-m", "fathom.cli", "serve", "--port", "0", "--api-key", KEY]
    webui = f"http://127.0.0.1:{args.port}"
    with tempfile.TemporaryDirectory() as directory, _running(serve, PYTHONPATH="src") as serving:
        fathom = first_line(serving).split()[-1]
        with _open_webui(directory, fathom, args.port):
            up_s = _until(lambda: _is_up(webui), "Open WebUI does not start")
            told = _in_browser(args.chromium, fathom, webui, args.output.with_suffix(""))
    facts = "import json, fathom.commands.bench_facts as f; print(json.dumps(f.machine_facts()))"
    machine = subprocess.check_output(
        [args.python, "-c", facts], env={"PYTHONPATH": "src"}, cwd=ROOT
    )
    versions = {"open_webui": version("open-webui"), "playwright": version("playwright")}
    results = {"machine": json.loads(machine), **versions, "up_after_s": up_s, **told}
    args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
