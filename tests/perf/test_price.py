"""Costs against sums by hand."""

from __future__ import annotations

import pytest

from fathom.errors import ConfigError
from fathom.perf.price import ApiPrice, CostAsked, Flow, built_in_prices, costs, priced
from fathom.spec.catalogue import builtin_catalogue
from fathom.spec.known import known_names

API = ApiPrice(id="x", cache_hit=0.1, cache_miss=1.0, output=2.0, source="", date="")
FLOW = Flow(input_len=3000, output_len=1000, cached_len=1000, requests_per_s=2.0)


def test_the_cost_of_a_token() -> None:
    asked = CostAsked(hour=3.6, utilization=0.5, api=API, month_tokens=1e9)
    found = costs(FLOW, num_gpus=8, tdp_w=500, gpu=None, asked=asked)
    assert found.hour == pytest.approx(28.8)
    # 3600 requests an hour at half load, 4000 tokens each.
    assert found.million == pytest.approx(28.8 / (3600 * 4000) * 1e6)
    assert found.million_output == pytest.approx(28.8 / (3600 * 1000) * 1e6)
    per_request = (0.1 * 1000 + 1.0 * 2000 + 2.0 * 1000) / 1e6
    assert found.api_million == pytest.approx(per_request / 4000 * 1e6)
    # Of 7200 requests an hour at full load: as many as cost at the API what the machine costs.
    assert found.break_even == pytest.approx(28.8 / per_request / 7200)
    assert found.month_api == pytest.approx(1e9 * per_request / 4000)
    assert found.watts == 4000
    assert found.joules_token == pytest.approx(4000 / 8000)
    assert found.kwh_million == pytest.approx(0.5 * 1e6 / 3.6e6)


def test_at_break_even_both_cost_the_same() -> None:
    first = costs(FLOW, num_gpus=8, tdp_w=500, gpu=None, asked=CostAsked(hour=0.9, api=API))
    assert first.break_even is not None
    assert first.break_even < 1
    asked = CostAsked(hour=0.9, api=API, utilization=first.break_even)
    again = costs(FLOW, num_gpus=8, tdp_w=500, gpu=None, asked=asked)
    assert again.million == pytest.approx(again.api_million)


def test_energy_is_paid_where_it_has_a_price() -> None:
    asked = CostAsked(hour=1.0, kwh=0.5, pue=1.2)
    found = costs(FLOW, num_gpus=2, tdp_w=500, gpu=None, asked=asked)
    assert found.hour == pytest.approx(2 + 1.2 * 0.5)


def test_unknown_prices_stay_unknown() -> None:
    found = costs(FLOW, num_gpus=2, tdp_w=500, gpu=None, asked=CostAsked())
    assert (found.hour, found.million, found.api_million, found.break_even) == (None,) * 4


def test_every_price_is_of_something_known_and_has_a_source_and_a_date() -> None:
    prices = built_in_prices()
    known = {one.id for one in builtin_catalogue().gpus}
    models = {one.lower().removeprefix("deepseek-ai/") for one in known_names()}
    assert {one.id for one in prices.gpus} <= known
    for row in (*prices.apis, *prices.gpus):
        assert "http" in row.source
        assert row.date
    assert {name for one in prices.apis for name in one.models} <= models
    asked = priced(CostAsked(currency="CNY"), prices, "deepseek-ai/DeepSeek-V3")
    assert asked.api is not None
    assert asked.api.output == 8


def test_a_file_of_ones_own_changes_prices() -> None:
    mine = '[[gpu]]\nid = "h20-sxm-96"\nhour = 9.9\ncurrency = "CNY"\n'
    mine += '[[api]]\nid = "mine"\nmodels = ["DeepSeek-V3"]\n'
    mine += "cache_hit = 0\ncache_miss = 1\noutput = 2\n"
    prices = built_in_prices().changed(mine, "mine.toml")
    found = prices.gpu("h20-sxm-96", "CNY")
    assert found is not None
    assert (found.hour, found.source) == (9.9, "mine.toml")
    assert prices.gpu("h20-sxm-96", "USD") is None
    api = prices.api("deepseek-ai/DeepSeek-V3", "USD")
    assert api is not None
    assert api.id == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "[[gpu]",
        "[[gpus]]\nid='x'",
        "[[gpu]]\nid = 'x'",
        "[[gpu]]\nid = 'x'\nhour = -1",
        "[[gpu]]\nid = 'x'\nhour = nan",
        "[[gpu]]\nid = 'x'\nhour = true",
        "[[gpu]]\nid = 1\nhour = 1",
        "[[gpu]]\nid = 'x'\nhour = 1\nprice = 2",
        "[[api]]\nid = 'x'\ncache_hit = 'a'\ncache_miss = 1\noutput = 1",
        "[[api]]\nid = 'x'\nmodels = 5\ncache_hit = 1\ncache_miss = 1\noutput = 1",
        "gpu = 5",
    ],
)
def test_what_is_wrong_in_it_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml"):
        built_in_prices().changed(text, "mine.toml")
