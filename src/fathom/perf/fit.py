"""How many pages, and how long a context, fit a rank's memory; what to change where they do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from fathom.errors import CapacityError
from fathom.perf.held_weights import weight_lines
from fathom.perf.memory import ledger, page_bytes, total_bytes
from fathom.perf.working import WorkingSet
from fathom.spec.families import tensor_parallel_sizes
from fathom.spec.formats import BFLOAT16, FLOAT32, Format
from fathom.spec.plan import MemoryLine
from fathom.units import format_bytes, format_count

# What a pool on a host may take unasked however small the model.
_SMALL_POOL_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory of one rank. `limit_bytes` for everything that fathom allocates; `free_bytes` and
    `total_bytes` are the device's, divided among the ranks on it. `kv_bytes`: a modest pool that
    is enough where nothing was asked; None where the pool takes what is left. `is_host`: the ranks
    share the host's memory."""

    limit_bytes: int
    free_bytes: int
    total_bytes: int
    kv_bytes: int | None
    reserve_bytes: int
    is_host: bool
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits: pages of the pool, and tokens of the longest sequence."""

    num_pages: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Fitter:
    """Everything about a rank's memory but the pool and the context. `working.max_model_len` is
    ignored. `pool_bytes`: a pool of exactly this size was asked."""

    working: WorkingSet
    kv_dtype: Format
    budget: Budget
    pool_bytes: int | None

    def fit(self, demanded: int | None, longest: int) -> Fit:
        """The pool, and the demanded context length, or the largest up to `longest` that fits.

        Raises: CapacityError that says what would fit and how.
        """
        best = self.largest_context(longest)
        if best == 0:
            raise self._nothing_fits(demanded)
        if demanded is not None and demanded > best:
            raise self._too_long(demanded, best)
        length = self._whole_pages(best, longest) if demanded is None else demanded
        return Fit(self._pool(length), length)

    def largest_context(self, longest: int) -> int:
        """Tokens, at most `longest`, for which one sequence fits; 0 where no page does."""
        low, high = 0, longest
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.holds(middle) else (low, middle - 1)
        return low

    def _whole_pages(self, length: int, longest: int) -> int:
        """A rounder number, unless it is the model's own length or less than a page."""
        pages = length // self.working.page_size
        return length if length == longest else pages * self.working.page_size or length

    def holds(self, length: int) -> bool:
        """Whether one sequence of `length` fits, beside the pool where its size was asked."""
        return self.pages(length) >= self.pages_for(length)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that a sequence of `num_tokens` needs."""
        return ceil(num_tokens / self.working.page_size)

    def pages(self, max_model_len: int) -> int:
        """Pages that the pool may have beside weights and activations for that context: those
        that were asked, or all that fit; 0 where there is no room for them."""
        room = self._limit_bytes - self._used(0, max_model_len)
        fitting = max(0, room // self._page_bytes)
        if self.pool_bytes is None:
            return fitting
        asked = self.pool_bytes // self._page_bytes
        return asked if asked <= fitting else 0

    def lines(self, fit: Fit) -> tuple[MemoryLine, ...]:
        """The ledger of what fits."""
        return ledger(
            replace(self.working, max_model_len=fit.max_model_len),
            kv_dtype=self.kv_dtype,
            num_pages=fit.num_pages,
            reserve_bytes=self.budget.reserve_bytes,
        )

    def _weights(self) -> tuple[MemoryLine, ...]:
        working = self.working
        return weight_lines(working.spec, working.layout, working.holding)

    def _pool(self, max_model_len: int) -> int:
        fitting, one = self.pages(max_model_len), self.pages_for(max_model_len)
        if self.pool_bytes is not None:
            return fitting
        if self.budget.is_host:
            # More pages than all sequences can fill would only take memory from other programs.
            fitting = min(fitting, self.working.max_sequences * one)
        if self.budget.kv_bytes is not None:
            modest = min(
                self.budget.kv_bytes, max(_SMALL_POOL_BYTES, total_bytes(self._weights()) // 4)
            )
            fitting = min(fitting, max(one, modest // self._page_bytes))
        return fitting

    @property
    def _limit_bytes(self) -> int:
        # A pool of a given size replaces the share of memory; what is free still bounds it.
        return self.budget.limit_bytes if self.pool_bytes is None else self.budget.free_bytes

    @property
    def _page_bytes(self) -> int:
        return page_bytes(self.working, self.kv_dtype)

    def _used(self, num_pages: int, max_model_len: int) -> int:
        return total_bytes(self.lines(Fit(num_pages, max_model_len)))

    def _nothing_fits(self, demanded: int | None) -> CapacityError:
        """Weights, activations and one page, or the pool that was asked, are too much."""
        lines = self.lines(Fit(1, 1))
        table = ", ".join(f"{line.part} {format_bytes(line.num_bytes)}" for line in lines)
        fixes = self._fixes(1 if demanded is None else demanded)
        if not fixes and demanded is not None:
            fixes = [f"{fix} and a smaller --max-model-len" for fix in self._fixes(1)]
        fix = ", or ".join(fixes) or "use devices with more memory"
        if self.pool_bytes is not None and total_bytes(lines) <= self._limit_bytes:
            room = replace(self, pool_bytes=None, budget=self._all_that_is_free()).pages(1)
            return CapacityError(
                "--kv-cache-memory-bytes (kv_cache_memory_bytes)",
                found=format_bytes(self.pool_bytes),
                wanted=f"{self._page_bytes} (one page) to {room * self._page_bytes} bytes, what "
                "weights and activations leave",
                fix=fix,
            )
        return CapacityError(
            "the model does not fit the memory of a rank",
            found=f"{format_bytes(total_bytes(lines))} needed for one page of KV ({table})",
            wanted=f"at most {format_bytes(self._limit_bytes)}: {self.budget.reason}",
            fix=fix,
        )

    def _too_long(self, demanded: int, best: int) -> CapacityError:
        needed = self._used(self.pages_for(demanded), demanded)
        limit = f"{format_bytes(self._limit_bytes)}: {self.budget.reason}"
        if self.pool_bytes is not None:
            limit = f"a pool of {format_bytes(self.pool_bytes)}"
        return CapacityError(
            f"--max-model-len (max_model_len) {format_count(demanded)} does not fit",
            found=f"{format_bytes(needed)} needed for one sequence of that length",
            wanted=f"at most {format_count(best)} tokens in {limit}",
            fix=", or ".join([f"--max-model-len {best}", *self._fixes(demanded)]),
        )

    def _fixes(self, length: int) -> list[str]:
        """Settings that would each make one sequence of `length` fit, checked to do so."""
        budget, working, found = self.budget, self.working, []
        needed = self._used(self.pages_for(length), length)
        if self.pool_bytes is not None:
            free = replace(self, pool_bytes=None, budget=self._all_that_is_free())
            if free.holds(length):
                asked = min(self.pool_bytes // self._page_bytes, free.pages(length))
                size = max(asked, self.pages_for(length)) * self._page_bytes
                found.append(f"--kv-cache-memory-bytes {size}")
        elif needed <= min(budget.free_bytes, budget.total_bytes):
            # A hair more, because the share comes back as a float.
            share = min(1.0, ceil(100 * needed / budget.total_bytes + 1e-6) / 100)
            found.append(f"--gpu-memory-utilization {share:g}")
        if working.compute == FLOAT32 and self._with(BFLOAT16, working.layout.tp).holds(length):
            found.append("--dtype bfloat16")
        if not budget.is_host:
            ranks = (tp for tp in tensor_parallel_sizes(working.spec) if self._helps(tp, length))
            more = next(ranks, None)
            if more is not None:
                found.append(f"--tensor-parallel-size {more} on {more} such devices")
        return found

    def _all_that_is_free(self) -> Budget:
        return replace(self.budget, limit_bytes=self.budget.free_bytes)

    def _helps(self, tp: int, length: int) -> bool:
        working = self.working
        return tp > working.layout.tp and self._with(working.compute, tp).holds(length)

    def _with(self, compute: Format, tp: int) -> Fitter:
        """The same with another compute format or number of ranks."""
        layout = replace(self.working.layout, tp=tp)
        working = replace(self.working, compute=compute, layout=layout)
        return replace(self, working=working, kv_dtype=compute)
