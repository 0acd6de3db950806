"""Every op again, from its contract alone: float64, plain loops, no code shared with a backend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from fathom.ops.api import Angles, Held, Norm, Weight
from fathom.ops.batch import PagedBatch
from fathom.ops.quant.fp8_block import FP8_ROWS
from fathom.ops.quant.qtensor import QTensor
from fathom.ops.sampling import LogitEdits, Logprobs, SamplingRows
from fathom.spec.formats import Format
from fathom.spec.model import Mla, Moe

NEG_INF = float("-inf")


def wide(weight: Weight) -> torch.Tensor:
    """A weight's values in float64; for quantised ones, block by block."""
    if isinstance(weight, torch.Tensor):
        return weight.double()
    if weight.format.name == "int4":
        return wide_int4(weight)
    if weight.format.name == "int8":
        return weight.data.double() * weight.scale.double()
    values = weight.data.float().double()
    rows, columns = weight.block
    for row in range(weight.scale.shape[-2]):
        for column in range(weight.scale.shape[-1]):
            place = (
                ...,
                slice(row * rows, (row + 1) * rows),
                slice(column * columns, (column + 1) * columns),
            )
            values[place] *= weight.scale[..., row, column, None, None].double()
    return values


def wide_int4(weight: QTensor) -> torch.Tensor:
    """The even column of a byte is its low half: (nibble - zero point) * scale of its group."""
    assert weight.zero is not None
    values = torch.empty(weight.shape, dtype=torch.float64)
    values[..., 0::2] = (weight.data % 16).double()
    values[..., 1::2] = (weight.data // 16).double()
    size = weight.block[1]
    for group in range(weight.shape[-1] // size):
        columns = values[..., group * size : (group + 1) * size]
        columns -= weight.zero[..., group, None].double()
        columns *= weight.scale[..., group, None].double()
    return values


class Float64Oracle:
    """See `Backend`; results are float64."""

    name = "oracle"

    def hold(
        self,
        parts: Sequence[Weight],
        *,
        dtype: torch.dtype,
        format: Format | None = None,
        is_gated: bool = False,
    ) -> torch.Tensor:
        return torch.cat([wide(part) for part in parts])

    def hold_experts(
        self,
        experts: Iterable[Sequence[Weight]],
        count: int,
        *,
        dtype: torch.dtype,
        format: Format | None = None,
        is_gated: bool = False,
    ) -> torch.Tensor:
        return torch.stack([self.hold(parts, dtype=dtype) for parts in experts])

    def hold_kv_b(
        self, kv_b: Weight, mla: Mla, *, dtype: torch.dtype, format: Format | None = None
    ) -> torch.Tensor:
        return wide(kv_b).view(-1, mla.nope_dim + mla.v_dim, mla.kv_lora_rank)

    def embed(
        self, token_ids: torch.Tensor, weight: torch.Tensor, *, first_id: int = 0
    ) -> torch.Tensor:
        zeros = torch.zeros(weight.shape[1], dtype=torch.float64)
        last_id = first_id + len(weight)
        return torch.stack(
            [
                weight[t - first_id].double() if first_id <= t < last_id else zeros
                for t in token_ids.tolist()
            ]
        )

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if residual is not None:
            residual.copy_(residual.double() + x.double())
            x = residual
        rows = [row / torch.sqrt((row * row).sum() / len(row) + eps) for row in x.double()]
        return torch.stack(rows) * weight.double()

    def rope(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool
    ) -> torch.Tensor:
        out = x.double().clone()
        half = x.shape[-1] // 2
        for token in range(len(x)):
            for i in range(half):
                first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                a, b = x[token, ..., first].double(), x[token, ..., second].double()
                c, s = cos[token, i].double(), sin[token, i].double()
                out[token, ..., first] = a * c - b * s
                out[token, ..., second] = a * s + b * c
        return out

    def linear(
        self,
        x: torch.Tensor,
        weight: Held,
        *,
        norm: Norm | None = None,
        residual: torch.Tensor | None = None,
        is_wide: bool = False,
    ) -> torch.Tensor:
        assert isinstance(weight, torch.Tensor)
        if norm is not None:
            x = self.rms_norm(x, norm.weight, eps=norm.eps, residual=residual)
        return x.double() @ weight.T

    def mlp(self, x: torch.Tensor, gate_up: Held, down: Held) -> torch.Tensor:
        return self.linear(self.silu_mul(self.linear(x, gate_up)), down)

    def quantize_rows(self, x: torch.Tensor) -> QTensor:
        data = torch.empty(x.shape, dtype=torch.float64)
        scale = torch.empty(len(x), math.ceil(x.shape[1] / 128), dtype=torch.float64)
        for row in range(len(x)):
            for block in range(scale.shape[1]):
                part = slice(block * 128, (block + 1) * 128)
                values = x[row, part].double()
                scale[row, block] = float(values.abs().max()) / 448 or 1.0
                for place, value in enumerate(values.tolist(), part.start):
                    data[row, place] = nearest_e4m3(value / scale[row, block].item())
        return QTensor(data, scale, FP8_ROWS)

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        gate, up = x[..., :half].double(), x[..., half:].double()
        return gate / (1 + torch.exp(-gate)) * up

    def mla_write(
        self,
        cache: torch.Tensor,
        slots: torch.Tensor,
        latent: torch.Tensor,
        key_rope: torch.Tensor,
        *,
        norm: Norm,
        angles: Angles,
    ) -> None:
        rank = latent.shape[1]
        latent = self.rms_norm(latent, norm.weight, eps=norm.eps)
        key_rope = self.rope(key_rope, angles.cos, angles.sin, interleaved=angles.is_interleaved)
        for token, slot in enumerate(slots.tolist()):
            cell = cache[slot // cache.shape[1], slot % cache.shape[1]]
            cell[:rank] = latent[token]
            cell[rank:] = key_rope[token]

    def mla_plan(self, batch: PagedBatch, mla: Mla) -> PagedBatch:
        return batch

    def mla_attend(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        kv_b: Held,
        plan: object,
        *,
        scale: float,
        angles: Angles,
    ) -> torch.Tensor:
        assert isinstance(plan, PagedBatch)
        assert isinstance(kv_b, torch.Tensor)
        (tokens, heads, width), rank = query.shape, kv_b.shape[2]
        nope = width - 2 * angles.cos.shape[1]
        q_nope = query[..., :nope]
        q_rope = self.rope(
            query[..., nope:], angles.cos, angles.sin, interleaved=angles.is_interleaved
        )
        up, kv = kv_b.double(), cache.double()
        out = torch.empty(tokens, heads, kv_b.shape[1] - nope, dtype=torch.float64)
        sequence = 0
        for token in range(tokens):
            while token >= plan.query_starts[sequence + 1]:
                sequence += 1
            table, size = plan.page_table[sequence], plan.page_size
            seen = [
                kv[table[place // size], place % size] for place in range(plan.positions[token] + 1)
            ]
            latents = torch.stack(seen)
            for head in range(heads):
                keys = latents[:, :rank] @ up[head, :nope].T
                scores = keys @ q_nope[token, head].double()
                scores += latents[:, rank:] @ q_rope[token, head].double()
                weights = torch.exp(scores * scale - (scores * scale).max())
                values = latents[:, :rank] @ up[head, nope:].T
                out[token, head] = weights @ values / weights.sum()
        return out

    def route(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, moe: Moe
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [self._route_row(row, wide(weight), bias, moe) for row in x.double()]
        return (
            torch.tensor([ids for ids, _ in chosen]),
            torch.tensor([weights for _, weights in chosen], dtype=torch.float64),
        )

    def _route_row(
        self, row: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, moe: Moe
    ) -> tuple[list[int], list[float]]:
        logits = [float(row @ expert) for expert in weight]
        if moe.scoring == "softmax":
            total = sum(math.exp(value) for value in logits)
            scores = [math.exp(value) / total for value in logits]
        else:
            scores = [1 / (1 + math.exp(-value)) for value in logits]
        biases = [0.0] * len(scores) if bias is None else bias.double().tolist()
        choice = [score + extra for score, extra in zip(scores, biases, strict=True)]
        allowed = set(range(len(choice)))
        if moe.method != "greedy":
            allowed = self._experts_of_best_groups(choice, moe)
        ids = sorted(allowed, key=lambda e: (-choice[e], e))[: moe.experts_per_token]
        weights = [scores[e] for e in ids]
        if moe.normalize_weights:
            weights = [value / sum(weights) for value in weights]
        return ids, [value * moe.routed_scale for value in weights]

    def _experts_of_best_groups(self, choice: list[float], moe: Moe) -> set[int]:
        size = len(choice) // moe.num_groups
        best = []
        for group in range(moe.num_groups):
            members = sorted(choice[group * size : (group + 1) * size], reverse=True)
            best.append(sum(members[:2]) if moe.method == "noaux_tc" else members[0])
        order = sorted(range(moe.num_groups), key=lambda g: (-best[g], g))
        return {
            expert
            for group in order[: moe.groups_per_token]
            for expert in range(group * size, (group + 1) * size)
        }

    def experts(
        self,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        gate_up: Held,
        down: Held,
        *,
        shared: tuple[Held, Held] | None = None,
    ) -> torch.Tensor:
        assert isinstance(gate_up, torch.Tensor)
        assert isinstance(down, torch.Tensor)
        out = torch.zeros(x.shape, dtype=torch.float64)
        for token, ids in enumerate(expert_ids.tolist()):
            row = x[token : token + 1]
            for slot, expert in enumerate(ids):
                found = self.mlp(row, gate_up[expert], down[expert])[0]
                out[token] += expert_weights[token, slot].double() * found
        return out if shared is None else out + self.mlp(x, *shared)

    def mask_logits(self, logits: torch.Tensor, edits: LogitEdits) -> None:
        assert edits.allowed is not None
        assert edits.biases is not None
        assert edits.penalties is not None
        allowed = edits.allowed.tolist()
        rows = logits.double().tolist()
        for row, values in enumerate(rows):
            for token in range(len(values)):
                if not allowed[row][token // 8] >> token % 8 & 1:
                    values[token] = NEG_INF
        cells = zip(edits.biases.rows, edits.biases.ids, edits.biases.values, strict=True)
        for row, token, value in cells:
            rows[row][token] += float(value)
        given = edits.penalties
        for row, token, count in zip(given.rows, given.ids, given.counts, strict=True):
            value, factor = rows[row][token], float(given.repetition[row])
            value = value / factor if value > 0 else value * factor
            value -= float(given.frequency[row]) * int(count)
            rows[row][token] = value - (float(given.presence[row]) if count > 0 else 0)
        logits.copy_(torch.tensor(rows, dtype=torch.float64))

    def sample(self, logits: torch.Tensor, sampling: SamplingRows) -> torch.Tensor:
        rows = logits.double().tolist()
        tokens = [min(range(len(row)), key=lambda t: (-row[t], t)) for row in rows]
        for index, row in enumerate(sampling.rows.tolist()):
            tokens[row] = self._sample_row(rows[row], sampling, index)
        return torch.tensor(tokens)

    def _sample_row(self, logits: list[float], sampling: SamplingRows, index: int) -> int:
        temperature = float(sampling.temperature[index])
        order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
        best = logits[order[0]]
        weights = [math.exp((logits[t] - best) / temperature) for t in order]
        if sampling.top_k[index] > 0:
            weights = weights[: int(sampling.top_k[index])]
        weights = [value for value in weights if value >= float(sampling.min_p[index])]
        total, share, kept = sum(weights), 0.0, []
        for value in weights:
            kept.append(value)
            share += value / total
            if share >= float(sampling.top_p[index]):
                break
        target, share = float(sampling.uniform[index]) * sum(kept), 0.0
        for place, value in enumerate(kept):
            share += value
            if share > target:
                return order[place]
        return order[len(kept) - 1]

    def largest(self, logits: torch.Tensor) -> torch.Tensor:
        """See `Backend.largest`."""
        return logits.double().max(dim=-1).values

    def token_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, *, top: int) -> Logprobs:
        found = [
            self._logprobs_row(row, token, top)
            for row, token in zip(logits.double().tolist(), tokens.tolist(), strict=True)
        ]
        chosen, ranks, ids, best = zip(*found, strict=True)
        return Logprobs(
            torch.tensor(chosen, dtype=torch.float64),
            torch.tensor(ranks),
            torch.tensor(ids, dtype=torch.int64).view(len(found), top),
            torch.tensor(best, dtype=torch.float64).view(len(found), top),
        )

    def _logprobs_row(
        self, row: list[float], token: int, top: int
    ) -> tuple[float, int, list[int], list[float]]:
        largest = max(row)
        total = largest + math.log(sum(math.exp(value - largest) for value in row))
        order = sorted(range(len(row)), key=lambda t: (-row[t], t))
        best = order[:top]
        return row[token] - total, order.index(token) + 1, best, [row[t] - total for t in best]

    def verify(
        self, samples: torch.Tensor, drafts: torch.Tensor, num_drafts: torch.Tensor
    ) -> torch.Tensor:
        accepted = []
        for row, count in enumerate(num_drafts.tolist()):
            stands = 0
            while stands < count and samples[row, stands] == drafts[row, stands]:
                stands += 1
            accepted.append(stands + 1)
        return torch.tensor(accepted)


def nearest_e4m3(value: float) -> float:
    """The nearest value with 4 exponent and 3 fraction bits, ties to the even one."""
    if value == 0:
        return 0.0
    exponent = max(math.frexp(abs(value))[1] - 1, -6)
    step = 2.0 ** (exponent - 3)
    return math.copysign(round(abs(value) / step) * step, value)
