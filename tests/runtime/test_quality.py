"""Compares the comparison itself with torch's divergence, and the CPU kernels' formats with the
reference backend in float32 on the embedded model, within the limits of `spec/quality.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fathom.config import EngineConfig
from fathom.core.loop import EngineCore
from fathom.engine.answers import score_tasks
from fathom.engine.heldout import Question, documents, embedded_heldout, read_rows
from fathom.engine.loading import scheduler_config
from fathom.engine.quality import Material, QualityFormat, evaluate, plan_of
from fathom.engine.text_side import load_text
from fathom.errors import ConfigError
from fathom.runtime.quality import LoadedModel, Predictions, compare
from fathom.spec.quality import QUALITY_LIMITS, Document, Positions, excess, summarize
from fathom.weights.embedded import embedded_path
from fathom.weights.open import open_checkpoint
from fathom.weights.quantize import quantize_checkpoint

NUM_TOKENS = 500
CONFIG = EngineConfig(kv_cache_memory_bytes=64 * 2**20, threads=1, device="cpu")


@pytest.fixture(scope="module", autouse=True)
def torch_threads() -> Iterator[None]:
    """Models start threads for themselves; later tests get torch's back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def material() -> Material:
    text = load_text(CONFIG)
    return Material(text, documents(read_rows(embedded_heldout()), text, NUM_TOKENS))


@pytest.fixture(scope="module")
def reference(material: Material) -> Predictions:
    return LoadedModel(plan_of(CONFIG, "float32")).predict(material.documents)


def test_the_divergence_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(150, 40, generator=generator) for _ in range(2))
    targets = torch.arange(150) % 40
    found = compare(*(Predictions(logits, targets, lambda rows: rows) for logits in (p, q)))
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    wanted = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(torch.tensor(found.kl, dtype=torch.float64), wanted)
    assert found.agrees == tuple((p.argmax(-1) == q.argmax(-1)).tolist())
    losses = torch.tensor(found.losses, dtype=torch.float64)
    torch.testing.assert_close(losses, F.nll_loss(q, targets, reduction="none"))
    summary = summarize(found)
    assert summary.p99_kl == sorted(found.kl)[148]
    assert summary.perplexity == pytest.approx(F.nll_loss(q, targets).exp().item())


def test_what_exceeds_its_limits_is_named() -> None:
    limit = QUALITY_LIMITS["int8"]
    same = (0.0, 0.0)
    good = summarize(Positions((limit.max_mean_kl,) * 2, (True, True), same, same))
    bad = summarize(Positions((2 * limit.max_mean_kl,) * 2, (True, False), same, same))
    assert excess("int8", good) == excess("no such format", bad) == ""
    assert "mean KL" in excess("int8", bad)
    assert "50.0% under" in excess("int8", bad)


def test_chunks_of_a_text_predict_as_the_whole(reference: Predictions, material: Material) -> None:
    """Pages, and steps that begin inside a text and inside what is scored of it."""
    plan = replace(plan_of(CONFIG, "float32"), max_batch_tokens=7)
    found = LoadedModel(plan).predict(material.documents[:6])
    rows = len(found.target_ids)
    assert found.target_ids.equal(reference.target_ids[:rows])
    torch.testing.assert_close(found.states, reference.states[:rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["bf16", "stored", "fp8", "int8", "int4"])
def test_formats_stay_within_their_limits(
    name: QualityFormat, reference: Predictions, material: Material
) -> None:
    plan = plan_of(CONFIG, name)
    assert plan.ops_backend == "cpu", "this machine's processor has no kernels"
    found = summarize(compare(reference, LoadedModel(plan).predict(material.documents)))
    assert found.num_positions == NUM_TOKENS
    assert not excess(name, found), found
    assert found.mean_kl > 0, "a format was not applied"


def test_a_cache_in_fp8_stays_within_its_limits(reference: Predictions, material: Material) -> None:
    plan = plan_of(replace(CONFIG, kv_cache_dtype="fp8"), "bf16")
    assert plan.kv_dtype.name != "bfloat16"
    found = summarize(compare(reference, LoadedModel(plan).predict(material.documents)))
    assert not excess("kv_fp8", found), found


@pytest.mark.parametrize("group", [128, 64, 32])
def test_checkpoints_of_fathom_quantize_stay_within_their_limits(
    group: int, reference: Predictions, material: Material, tmp_path: Path
) -> None:
    quantize_checkpoint(
        open_checkpoint(embedded_path()), tmp_path / "out", target="int4", group_size=group
    )
    plan = plan_of(replace(CONFIG, model=str(tmp_path / "out")), "stored")
    found = summarize(compare(reference, LoadedModel(plan).predict(material.documents)))
    assert not excess(f"int4-{group}", found), found


def test_a_wrong_scale_exceeds_every_limit(reference: Predictions) -> None:
    """The table is tight enough to notice what a broken kernel does: logits a fifth too large."""
    found = summarize(
        compare(reference, replace(reference, logits=lambda rows: 1.2 * reference.logits(rows)))
    )
    assert all(excess(name, found) for name in QUALITY_LIMITS if not name.startswith("int"))


def test_tasks_are_answered(material: Material) -> None:
    """A question that the model's facts answer; and one too long for the context is refused."""
    rows = [row for row in read_rows(embedded_heldout()) if isinstance(row, Question)]
    facts = [row for row in rows if row.task == "fathom"]
    plan = plan_of(CONFIG, "stored")
    executor = LoadedModel(plan).executor()
    try:
        core = EngineCore(executor, scheduler_config(plan))
        (score,) = score_tasks(core, material.text, facts, plan.max_model_len)
    finally:
        executor.close()
    assert (score.task, score.num_questions) == ("fathom", len(facts))
    assert score.valid == 1
    assert score.correct >= 0.8


def test_what_cannot_be_measured_is_refused(material: Material) -> None:
    with pytest.raises(ConfigError, match="--formats"):
        evaluate(CONFIG, ["int3"], material)
    with pytest.raises(ConfigError, match="one rank"):
        plan_of(replace(CONFIG, tensor_parallel_size=2), "bf16")
    plan = replace(plan_of(CONFIG, "float32"), max_model_len=64)
    with pytest.raises(ConfigError, match="longer than the context"):
        LoadedModel(plan).predict([Document(tuple(range(65)))])
