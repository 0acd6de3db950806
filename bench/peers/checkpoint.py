"""Makes "v3-mini": DeepSeek-V3's architecture at 1.28 B parameters, random weights, a tokenizer.

    python -m bench.peers.checkpoint OUT_DIR [--layers 12 ...]

Random weights multiply as real ones do, so speed is what it would be; text is noise. Weights depend
on the seed and on each tensor's name only.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fathom.ops.quant.qtensor import QTensor
from fathom.spec.params import CORRECTION_BIAS, ParamSpec
from fathom.weights.save import save_checkpoint
from fathom.weights.synthetic import random_parameter

SPECIALS = ("<|begin|>", "<|end|>")
CORPUS_BYTES = 40 << 20
SHARD_BYTES = 1 << 30
# A head twice as wide as its inputs ask for: the best token then stands above rounding, and engines
# can be compared by what they choose.
HEAD_SCALE = 2.0
# `random_parameter` draws the router's correction bias with 0.1; half leaves scores more say.
BIAS_SCALE = 0.5


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model, in the words of DeepSeek's config.json. Defaults: v3-mini."""

    hidden_size: int = 1024
    num_hidden_layers: int = 12
    first_k_dense_replace: int = 1
    intermediate_size: int = 2816
    moe_intermediate_size: int = 512
    n_routed_experts: int = 64
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    n_shared_experts: int = 1
    num_attention_heads: int = 16
    q_lora_rank: int = 384
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    vocab_size: int = 32000
    max_position_embeddings: int = 8192
    num_nextn_predict_layers: int = 0


def config_of(shape: Shape) -> dict[str, object]:
    """The config.json of a DeepSeek-V3 of this shape: its routing, plain positions, bfloat16."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "torch_dtype": "bfloat16",
        **asdict(shape),
        "num_key_value_heads": shape.num_attention_heads,
        "moe_layer_freq": 1,
        "ep_size": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_interleave": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "use_cache": True,
    }


def make_weight(row: ParamSpec, seed: int) -> torch.Tensor | QTensor:
    """One tensor: deviation 1 / sqrt(inputs), the head twice that, the correction bias 0.05.

    The scales are powers of two, so that scaling after the rounding to bfloat16 loses nothing.
    """
    value = random_parameter(row, seed=seed)
    if row.role in ("head", "mtp_head"):
        assert isinstance(value, torch.Tensor)
        return value * HEAD_SCALE
    if row.role == CORRECTION_BIAS:
        assert isinstance(value, torch.Tensor)
        return value * BIAS_SCALE
    return value


def corpus(most_bytes: int = CORPUS_BYTES) -> Iterator[str]:
    """Text that every machine with Python has: the sources of its own library, in a fixed order."""
    left = most_bytes
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in file.parts:
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) > left:
            return
        left -= len(text)
        yield text


def write_tokenizer(path: Path, shape: Shape) -> int:
    """Train a byte-level BPE tokenizer into `path`; its number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    begin, end = SPECIALS
    template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
        "{% endfor %}assistant:"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_position_embeddings,
        "chat_template": template,
    }
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (path / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return int(tokenizer.get_vocab_size())


def make_checkpoint(path: Path, shape: Shape, seed: int) -> None:
    """Write config, weights and tokenizer into the directory `path`."""
    save_checkpoint(
        config_of(shape), path, lambda row: make_weight(row, seed), max_shard_bytes=SHARD_BYTES
    )
    num_tokens = write_tokenizer(path, shape)
    if num_tokens != shape.vocab_size:
        raise SystemExit(f"{num_tokens} tokens were trained, {shape.vocab_size} wanted")


def main() -> None:
    """The command line: a flag for every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1234)
    for field in fields(Shape):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=field.default, dest=field.name)
    args = vars(parser.parse_args())
    out, seed = args.pop("out"), args.pop("seed")
    make_checkpoint(out, Shape(**args), seed)


if __name__ == "__main__":
    main()
