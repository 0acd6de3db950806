"""The run: peers of a format take turns, round by round, beside the machine's limits.

Drivers stay loaded while memory allows. The one used last goes first: in turns that repeat, it is
the one whose next turn is furthest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.peers import cases
from bench.peers.compare import NEW_TOKENS, compare
from bench.peers.peers import Peer, reference_command
from bench.peers.prepare import Cache
from bench.peers.protocol import Driver, PeerError
from bench.peers.roofline import Roofline
from bench.peers.servers import measure_server
from bench.peers.system import available_bytes, watched

_START_S = 900.0
_CASE_S = 900.0
# The first sample of a case may search for settings before it.
_FIRST_CASE_S = 3600.0
# For what is mapped from files, code and llama.cpp's weights: it counts as available, and is the
# first that a system short of memory drops.
_SPARE_BYTES = 7 << 30


@dataclass(frozen=True, slots=True)
class Lead:
    """How many times better, in how many rounds."""

    factor: float
    rounds: int


# Over HTTP a round of a slow peer takes many minutes, and settles nothing where another peer, whose
# figures are compared with ours, is the better one, or where the comparison cannot turn.
_SURE, _FAR = Lead(1.05, 2), Lead(2.5, 1)


@dataclass(slots=True)
class Results:
    """What was found so far: samples, limits of the machine, facts and errors of the peers; why
    outputs could not be compared, empty where they were; the rounds that were seen to their end."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    rooflines: list[dict[str, Any]] = field(default_factory=list)
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference_error: str = ""
    done: list[str] = field(default_factory=list)

    def record(self, peer: str, round_number: int, case: str, sample: dict[str, Any]) -> None:
        """Keep a sample with the limits that were measured last, and tell of it."""
        latest = len(self.rooflines) - 1
        self.samples.append(
            {"peer": peer, "case": case, "round": round_number, "roofline": latest, **sample}
        )
        value = sample.get("error") or f"{sample['value']:.4g}"
        print(f"  round {round_number}: {peer}, {case}: {value}", flush=True)

    def failed(self, peer: str, case: str) -> bool:
        """Whether this peer has failed at this case: it is not tried again."""
        return any(
            "error" in one and one["peer"] == peer and one["case"] == case for one in self.samples
        )

    def leader(self, peer: str, others: Sequence[str], case: str, lead: Lead) -> str:
        """One of the others that was so far ahead of this peer in every round; "" if none was."""
        own, *rest = (self._by_round(name, case) for name in (peer, *others))
        is_time = case in cases.SMALLER_IS_BETTER
        for name, found in zip(others, rest, strict=True):
            pairs = [(found[at], own[at]) for at in own if at in found]
            leads = [mine / other if is_time else other / mine for other, mine in pairs]
            if len(leads) >= lead.rounds and min(leads) >= lead.factor:
                return name
        return ""

    def _by_round(self, peer: str, case: str) -> dict[int, float]:
        of_case = (one for one in self.samples if one["peer"] == peer and one["case"] == case)
        return {one["round"]: one["value"] for one in of_case if "value" in one}


@dataclass(slots=True)
class Run:
    """What is measured, with what."""

    cache: Cache
    threads: int
    vocab_size: int
    roofline: Roofline
    quiet_wait_s: float
    results: Results = field(default_factory=Results)
    _loaded: dict[str, Driver] = field(default_factory=dict)

    def limits(self) -> None:
        """Measure the machine's limits."""
        with watched() as seen:
            found = self.roofline.measure()
        self.results.rooflines.append({**found, **seen})

    def driver(self, peer: Peer) -> Driver:
        """The peer's driver, started where it is not. Raises: PeerError."""
        if peer.name in self._loaded:
            self._loaded[peer.name] = self._loaded.pop(peer.name)
            return self._loaded[peer.name]
        while self._loaded and available_bytes() < peer.memory_bytes + _SPARE_BYTES:
            self.unload(next(reversed(self._loaded)))
        made = Driver(
            peer.driver,
            self.cache.log(f"driver-{peer.name.replace(' ', '-')}"),
            environment=peer.environment,
            start_s=_START_S,
        )
        self._loaded[peer.name] = made
        self.results.peers[peer.name].update(made.facts)
        return made

    def unload(self, name: str) -> None:
        """End a driver."""
        self._loaded.pop(name).close()

    def close(self) -> None:
        """End all drivers."""
        for name in list(self._loaded):
            self.unload(name)

    def wait_until_quiet(self) -> None:
        """Wait, `quiet_wait_s` at most, for a second in which others used under a tenth."""
        until_s = time.monotonic() + self.quiet_wait_s
        while time.monotonic() < until_s:
            with watched() as seen:
                time.sleep(1.0)
            if seen["busy"] < 0.1:
                return


def check_outputs(run: Run, peers: Sequence[Peer]) -> None:
    """Compare every peer's log-probabilities with the reference's. Errors are kept: a peer's by its
    name, the reference's own for all."""
    prompts = cases.check_prompts(run.vocab_size)
    answers: dict[str, Any] = {}
    for peer in peers:
        try:
            driver = run.driver(peer)
            asked = {"prompts": prompts, "new_tokens": NEW_TOKENS}
            answers[peer.name] = driver.call("logprobs", _CASE_S, **asked)
            print(f"  {peer.name}: answered", flush=True)
        except PeerError as error:
            run.results.peers[peer.name]["error"] = str(error)
            print(f"  {peer.name}: {error}", flush=True)
    run.close()
    try:
        _judge(run, prompts, answers)
    except PeerError as error:
        run.results.reference_error = f"transformers in float32: {error}"
        print(f"  not compared: {error}", flush=True)


def _judge(run: Run, prompts: list[list[int]], answers: dict[str, Any]) -> None:
    command, environment = reference_command(run.cache, run.threads)
    log = run.cache.log("reference")
    reference = Driver(command, log, environment=environment, start_s=_START_S)
    try:
        for name, answer in answers.items():
            found = compare(prompts, answer, partial(_score, reference))
            run.results.peers[name]["output"] = found
            print(f"  {name}: {found['distance_nats']} nats from the reference", flush=True)
    finally:
        reference.close()


def _score(reference: Driver, prompt: list[int], tokens: list[int]) -> Any:
    return reference.call("score", _CASE_S, prompt=prompt, tokens=tokens)


def offline_round(run: Run, peers: Sequence[Peer], number: int) -> None:
    """One sample of every offline case from every peer."""
    for peer in peers:
        if "error" in run.results.peers[peer.name]:
            continue
        run.wait_until_quiet()
        run.limits()
        for case in cases.OFFLINE:
            if run.results.failed(peer.name, case.name):
                continue
            record = partial(run.results.record, peer.name, number, case.name)
            wire = cases.case_to_wire(case, number, run.vocab_size)
            try:
                driver = run.driver(peer)
                deadline_s = _CASE_S if number else _FIRST_CASE_S
                with watched() as seen:
                    told = driver.call("measure", deadline_s, case=wire)
            except PeerError as error:
                record({"error": str(error)})
                if peer.name in run._loaded and driver.process.poll() is not None:
                    run.unload(peer.name)
            else:
                record({"value": told.pop("rate"), **told, **seen})


def _leaders(results: Results, peer: Peer, peers: Sequence[Peer]) -> list[str]:
    """Who leads a peer so clearly in both loads that no more of its rounds are needed."""
    if peer.engine == "fathom":
        return []
    every = [one.name for one in peers if one is not peer]
    rivals = [one.name for one in peers if one is not peer and one.engine != "fathom"]
    found = [
        results.leader(peer.name, rivals, case, _SURE)
        or results.leader(peer.name, every, case, _FAR)
        for case in (cases.MIXED, cases.PREFIX)
    ]
    return sorted(set(found)) if all(found) else []


def http_round(run: Run, peers: Sequence[Peer], number: int) -> None:
    """One sample of every HTTP case from every peer that has a server."""
    run.close()
    for peer in peers:
        facts = run.results.peers[peer.name]
        is_out = peer.server is None or "error" in facts
        if is_out or run.results.failed(peer.name, cases.START):
            continue
        if leaders := _leaders(run.results, peer, peers):
            facts["led_by"] = leaders
            continue
        run.limits()
        run.wait_until_quiet()
        log = run.cache.log(f"server-{peer.name.replace(' ', '-')}")
        record = partial(run.results.record, peer.name, number)
        measure_server(peer, log, number, run.vocab_size, record)
