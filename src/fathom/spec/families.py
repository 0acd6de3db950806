"""The families of models that can be described: DeepSeek's, which the engine runs, and dense ones.

What both have goes by one name in both specs; where they differ, callers ask which one they have.
"""

from __future__ import annotations

from collections.abc import Mapping

from fathom.errors import ConfigError
from fathom.spec import dense
from fathom.spec.deepseek import parse_config
from fathom.spec.deepseek_params import divided_sizes, parameter_table
from fathom.spec.dense import DenseSpec
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import Layout
from fathom.spec.params import ParamSpec

Model = ModelSpec | DenseSpec


def parse_model(config: Mapping[str, object]) -> Model:
    """The model that a config.json describes, of any family.

    Raises: CheckpointError for an architecture that is not known and for a field that is wrong.
    """
    named = config.get("architectures") if isinstance(config, Mapping) else None
    model_type = config.get("model_type") if isinstance(config, Mapping) else None
    for kind, architecture in dense.MODEL_TYPES.items():
        if named == [architecture] or (named is None and model_type == kind):
            return dense.parse_dense(config, architecture)
    return parse_config(config)


def parameters(model: Model, *, is_brief: bool = False) -> tuple[ParamSpec, ...]:
    """The parameter table: one row for each tensor of the checkpoint, or `is_brief` for the first
    expert of each layer."""
    if isinstance(model, DenseSpec):
        return dense.dense_table(model)
    return parameter_table(model, is_brief=is_brief)


def tensor_parallel_sizes(model: Model, most: int = 64) -> tuple[int, ...]:
    """The tensor-parallel sizes up to `most` that cut every sharded tensor evenly."""
    return tuple(tp for tp in range(1, most + 1) if not _undivided(model, tp))


def check_tensor_parallel(model: Model, tp: int) -> None:
    """Raises: ConfigError, with the sizes that work, where `tp` ranks cannot share the model."""
    odd = _undivided(model, tp)
    if odd:
        raise ConfigError(
            "--tensor-parallel-size (tensor_parallel_size)",
            found=f"{tp}, which does not divide the model's {' and '.join(odd)}",
            wanted=f"one of {', '.join(map(str, tensor_parallel_sizes(model, max(tp, 64))))}",
        )


def _undivided(model: Model, tp: int) -> list[str]:
    """What `tp` ranks cannot share evenly."""
    if isinstance(model, ModelSpec):
        return [f"{name} {size}" for name, size in divided_sizes(model) if size % tp]
    gqa = model.gqa
    odd = [
        f"{name} {size}"
        for name, size in (
            ("num_attention_heads", gqa.num_heads),
            ("vocab_size", model.vocab_size),
            ("intermediate_size", model.intermediate_size),
        )
        if size % tp
    ]
    if gqa.num_kv_heads % tp and tp % gqa.num_kv_heads:
        odd.append(f"num_key_value_heads {gqa.num_kv_heads}")
    return odd


def num_experts(model: Model) -> int:
    """Routed experts of a layer that has them; 0 where the model has none."""
    return model.moe.num_experts if isinstance(model, ModelSpec) and model.moe else 0


def check_layout(model: Model, layout: Layout) -> None:
    """Raises: ConfigError where a layout does not divide the model, or contradicts itself."""
    found = f"tp={layout.tp} dp={layout.dp} ep={layout.ep} pp={layout.pp}"
    if min(layout.tp, layout.dp, layout.ep, layout.pp) < 1:
        raise ConfigError("layout", found=found, wanted="1 or more along each axis")
    check_tensor_parallel(model, layout.tp)
    experts = num_experts(model)
    moe = model.moe if isinstance(model, ModelSpec) else None
    if layout.pp > model.num_layers:
        wanted = f"at most {model.num_layers} stages: each has a layer or more"
        raise ConfigError("layout: pp", found=found, wanted=wanted)
    if layout.stage_size % layout.ep:
        wanted = f"ep that divides the {layout.stage_size} ranks of a stage (tp x dp)"
        raise ConfigError("layout: ep", found=found, wanted=wanted)
    if moe is None:
        if layout.ep > 1:
            raise ConfigError("layout: ep", found=found, wanted="ep=1: the model has no experts")
        return
    if experts % layout.ep or moe.intermediate_size % layout.expert_cuts:
        raise ConfigError(
            "layout: ep",
            found=f"{found}: {experts} experts in {layout.ep} groups, their "
            f"{moe.intermediate_size} inner values cut {layout.expert_cuts} ways",
            wanted="groups of equal size, and equal parts",
        )
