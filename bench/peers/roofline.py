"""The machine's limits, and what they allow: the most tokens a second that anyone could reach.

Decoding reads every weight that a step uses, and the KV of its context, from memory once; prefill
multiplies every token by every weight that it uses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.cases import Case
from bench.peers.protocol import PeerError, run

# Bytes a weight. Quantised: blocks of 32 with a 16-bit scale, as llama.cpp's Q8_0 and Q4_0.
BYTES_A_WEIGHT = {"bf16": 2.0, "int8": 34 / 32, "int4": 18 / 32}
KV_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class Work:
    """Sizes that decide the cost of a token, in weights."""

    dense_weights: int
    expert_weights: int
    num_moe_layers: int
    num_experts: int
    experts_per_token: int
    kv_numbers_a_token: int
    head_weights: int
    attention_flops_a_pair: int

    def step_bytes(self, batch: int, context: int, bytes_a_weight: float) -> float:
        """Bytes that one decode step reads, with experts chosen uniformly and independently."""
        unused = (1 - self.experts_per_token / self.num_experts) ** batch
        experts = self.num_experts * (1 - unused)
        weights = self.dense_weights + self.num_moe_layers * experts * self.expert_weights
        return weights * bytes_a_weight + batch * context * self.kv_numbers_a_token * KV_BYTES

    def prefill_flops(self, tokens: int) -> float:
        """Floating-point operations of a prompt whose last position alone meets the head."""
        experts = self.num_moe_layers * self.experts_per_token * self.expert_weights
        body = self.dense_weights - self.head_weights + experts
        pairs = tokens * (tokens + 1) / 2
        return 2.0 * (body * tokens + self.head_weights) + self.attention_flops_a_pair * pairs


def work_of(config: Mapping[str, Any]) -> Work:
    """The sizes of a model, from its config.json. Norms are left out: they are a rounding error."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, latent, rope = (
        config["num_attention_heads"],
        config["kv_lora_rank"],
        config["qk_rope_head_dim"],
    )
    qk_dim, v_dim = config["qk_nope_head_dim"] + rope, config["v_head_dim"]
    attention = (
        hidden * config["q_lora_rank"]
        + config["q_lora_rank"] * heads * qk_dim
        + hidden * (latent + rope)
        + latent * heads * (config["qk_nope_head_dim"] + v_dim)
        + heads * v_dim * hidden
    )
    dense_layers = config["first_k_dense_replace"]
    expert = 3 * hidden * config["moe_intermediate_size"]
    moe_layers = layers - dense_layers
    head = config["vocab_size"] * hidden
    dense = (
        layers * attention
        + dense_layers * 3 * hidden * config["intermediate_size"]
        + moe_layers * (config["n_shared_experts"] * expert + config["n_routed_experts"] * hidden)
        + head
    )
    return Work(
        dense_weights=dense,
        expert_weights=expert,
        num_moe_layers=moe_layers,
        num_experts=config["n_routed_experts"],
        experts_per_token=config["num_experts_per_tok"],
        kv_numbers_a_token=layers * (latent + rope),
        head_weights=head,
        attention_flops_a_pair=2 * layers * heads * (qk_dim + v_dim),
    )


def ceiling(work: Work, case: Case, number_format: str, *, bandwidth: float, peak: float) -> float:
    """The most tokens a second at `case`, from bytes and operations a second."""
    if case.kind == "prefill":
        return case.context * peak / work.prefill_flops(case.context)
    context = case.context + case.new_tokens // 2
    return (
        case.batch * bandwidth / work.step_bytes(case.batch, context, BYTES_A_WEIGHT[number_format])
    )


class Roofline:
    """The compiled measurement."""

    def __init__(self, cache: Path, threads: int) -> None:
        """Compile it. Raises: PeerError without a C compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise PeerError("no C compiler: gcc was not found")
        self._program, self._threads = cache / "roofline", threads
        self._log = cache / "logs" / "roofline.log"
        source = Path(__file__).with_suffix(".c")
        flags = ["-O3", "-march=native", "-fopenmp"]
        command = [compiler, *flags, source, "-o", self._program]
        run(command, deadline_s=120, log=self._log)

    def measure(self) -> dict[str, Any]:
        """Bandwidth and peak now: means and bests of seven goes."""
        environment = {"OMP_NUM_THREADS": str(self._threads), "OMP_PROC_BIND": "true"}
        output = run([self._program], deadline_s=120, log=self._log, environment=environment)
        found: dict[str, Any] = json.loads(output)
        return found
