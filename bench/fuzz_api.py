"""The server on the embedded model under schemathesis, by the server's own description of itself.

    python bench/fuzz_api.py [--seconds 600 --examples 200] [--output FILE]

Every operation is asked, none is filtered out, with data that is valid by the description and with
data that is not; then answers' ids are used for further requests. Without `--seconds` the cases are
always the same: each field at its bounds and beyond them. With it they are drawn by chance.

An answer of 5xx fails the run, and so does one whose status, content type or shape is not
described, or invalid data that is taken. Two checks are left out: that all data of the right shape
is taken (which temperature is valid no shape says), and that a wrong key in one header is refused
(the right one in another suffices; `tests/server/test_auth.py` tries them all).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starting import first_line

from fathom.commands.bench_facts import machine_facts

KEY = "sk-fuzzed"
UNFIT = "positive_data_acceptance,ignored_auth"


def fuzz(url: str, seconds: int | None, examples: int, reports: Path) -> dict[str, Any]:
    """What schemathesis found, and how often the server answered with which status."""
    limits = ["--phases", "coverage,fuzzing,stateful", "--generation-deterministic"]
    if seconds is not None:
        limits = ["--phases", "fuzzing,stateful", "--max-time", str(seconds)]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [
        str(shutil.which("schemathesis", path=programs)),
        *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
        *("--mode", "all", "--checks", "all", "--exclude-checks", UNFIT, "--continue-on-failure"),
        *("--max-examples", str(examples), *limits, "--no-color", "--warnings", "off"),
        *("--report-json-path", str(reports / "run.json")),
        *("--report-ndjson-path", str(reports / "events.ndjson")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=reports, check=False)
    if not (reports / "run.json").is_file():
        raise RuntimeError(done.stdout + done.stderr)
    told = json.loads((reports / "run.json").read_text(encoding="utf-8"))
    with (reports / "events.ndjson").open(encoding="utf-8") as events:
        statuses = Counter(status for line in events for status in _statuses(json.loads(line)))
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    kept = ("schemathesis_version", "seed", "running_time", "operations", "phases", "test_cases")
    return {
        **{name: told[name] for name in (*kept, "failures", "errors")},
        "excluded_checks": UNFIT,
        "statuses": dict(sorted(statuses.items())),
    }


def _statuses(told: Any) -> Iterator[int]:
    """The statuses of all responses in an event."""
    if isinstance(told, dict):
        if isinstance(status := told.get("status_code"), int):
            yield status
        told = list(told.values())
    if isinstance(told, list):
        for item in told:
            yield from _statuses(item)


def main() -> None:
    """Serve, ask, write the result. Exits with 1 where anything was found."""
    parser = argparse.ArgumentParser(description="The server under schemathesis.")
    parser.add_argument("--seconds", type=int, help="as long, with data of chance")
    parser.add_argument("--examples", type=int, default=5, help="cases an operation and round")
    parser.add_argument("--output", type=Path, help="file for the result")
    args = parser.parse_args()
    serve = [sys.executable, "-m", "fathom.cli", "serve", "--port", "0", "--api-key", KEY]
    serve += ["--threads", "1", "--max-model-len", "32"]
    with tempfile.TemporaryDirectory() as directory:
        server = subprocess.Popen(
            serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            results = fuzz(
                first_line(server).split()[-1], args.seconds, args.examples, Path(directory)
            )
        finally:
            server.terminate()
            results_of_server = server.wait(60)
    results |= {"machine": machine_facts(), "server_exit": results_of_server}
    results["command"] = f"python bench/fuzz_api.py {' '.join(sys.argv[1:])}"
    text = json.dumps(results, indent=1)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    bad = (
        results["failures"] or results["errors"] or any(int(s) >= 500 for s in results["statuses"])
    )
    sys.exit(1 if bad or results_of_server else 0)


if __name__ == "__main__":
    main()
