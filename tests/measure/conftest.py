from __future__ import annotations

import pytest
from measure_reference import Batch, build_llama, make_rows
from transformers import LlamaForCausalLM


@pytest.fixture
def rows() -> Batch:
    return make_rows()


@pytest.fixture(params=["plain", "grouped-query", "tied"])
def llama(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    return build_llama(key_value_heads=2 if request.param == "grouped-query" else 4, tied=request.param == "tied")
