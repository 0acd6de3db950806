"""Known models against the sizes that their makers publish, the configs of their checkpoints, and
wrong claims that circulate."""

from __future__ import annotations

import pytest

from fathom.errors import ConfigError
from fathom.spec.deepseek import parse_config
from fathom.spec.families import parameters
from fathom.spec.formats import BFLOAT16, kv_cell_bytes
from fathom.spec.known import count_parameters, find_model, known_names
from fathom.spec.model import ModelSpec
from tests.spec.published_configs import DEEPSEEK_V2, DEEPSEEK_V2_LITE, DEEPSEEK_V3


@pytest.mark.parametrize(
    ("name", "published"),
    [  # in 1e9: READMEs and papers of the models; counts that the hub shows for the distilled ones
        ("V3", 671.03),
        ("V3.1", 671.03),
        ("V2", 235.74),
        ("V2.5", 235.74),
        ("Coder-V2", 235.74),
        ("V2-Lite", 15.7),
        ("Coder-V2-Lite", 15.7),
        ("R1-Distill-Llama-8B", 8.03),
        ("R1-Distill-Llama-70B", 70.6),
        ("R1-Distill-Qwen-1.5B", 1.777088),
        ("R1-Distill-Qwen-7B", 7.62),
        ("R1-Distill-Qwen-14B", 14.8),
        ("R1-Distill-Qwen-32B", 32.763876352),
        ("deepseek-coder-33b-instruct", 33.3),
    ],
)
def test_counts_are_the_published_ones(name: str, published: float) -> None:
    model = find_model(name)
    assert model.main_parameters / 1e9 == pytest.approx(published, rel=2.5e-3)
    assert count_parameters(model.spec) == (model.main_parameters, model.mtp_parameters)


def test_every_model_has_its_facts() -> None:
    for name in known_names():
        model = find_model(name)
        assert model.published
        assert model.source
        assert model.date
        assert model.spec.max_position >= 16384
        is_fp8 = model.mtp_parameters > 0
        assert model.native_format == ("fp8_block" if is_fp8 else "bfloat16")
        for alias in (*model.aliases, name.upper(), name.removeprefix("deepseek-ai/")):
            assert find_model(alias) == model
    for release in ("V2", "V2-Lite", "V2-Chat", "V2.5", "V3", "V3-Base", "V3-0324", "V3.1"):
        assert find_model(release).name == f"deepseek-ai/DeepSeek-{release}"
    for release in ("R1", "R1-Zero", "R1-0528", "V3.1-Terminus", "Coder-V2-Lite-Base"):
        assert find_model(release).name == f"deepseek-ai/DeepSeek-{release}"
    for release in ("Coder-V2", "Coder-V2-Lite"):
        assert find_model(release).name == f"deepseek-ai/DeepSeek-{release}-Instruct"


def test_specs_are_those_of_the_checkpoints_configs() -> None:
    assert find_model("V3").spec == find_model("R1").spec == parse_config(DEEPSEEK_V3)
    assert find_model("V2").spec == parse_config(DEEPSEEK_V2)
    assert find_model("V2-Lite").spec == parse_config(DEEPSEEK_V2_LITE)


def test_v3_is_not_236_billion() -> None:
    """The claim "V3 = 236B, 472 GB" is V2's size. V3's README_WEIGHTS.md: 671B, and 11.5B of MTP
    without the shared embedding and head (11.61B by its own shapes); 641 GiB as it is stored."""
    v3, v2 = find_model("DeepSeek-V3"), find_model("DeepSeek-V2")
    assert v3.main_parameters == 671_026_419_200
    assert v3.mtp_parameters == 11_610_068_224
    assert round(v2.main_parameters / 1e9) == 236
    assert round(v2.main_parameters * 2 / 1e9) in (471, 472)
    stored = sum(row.format.num_bytes(row.shape) for row in parameters(v3.spec))
    assert round(stored / 2**30) == 641


def test_v3_keeps_70272_bytes_a_token() -> None:
    v3 = find_model("V3").spec
    assert isinstance(v3, ModelSpec)
    cell = kv_cell_bytes(BFLOAT16, v3.mla.kv_lora_rank, v3.mla.rope_dim)
    assert cell * v3.num_layers == 70_272


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("deepsek-v3", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-ai/DeepSeek-R1-0529", "deepseek-ai/DeepSeek-R1-0528"),
        ("R1-Distil-Qwen-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
        ("", "deepseek-ai/DeepSeek-V3"),
        ("gpt-9" * 100, "deepseek-ai/DeepSeek-V3"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match="model") as caught:
        find_model(name)
    assert near in caught.value.wanted
    assert len(caught.value.found) < 200
