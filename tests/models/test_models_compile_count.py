from __future__ import annotations

import pytest
import torch
from models_tools import logits_of, tiny_model, token_ids
from torch._dynamo.testing import CompileCounter


@pytest.mark.parametrize(
    ("text", "most"),
    [("lns", 3), ("pre", 1), ("deepnorm", 1), ("mix(alpha=0.5)", 3), ("pre+qk_norm", 1), ("hybrid", 1)],
)
def test_layers_that_differ_in_a_scalar_share_their_compiled_code(text: str, most: int) -> None:
    torch.compiler.reset()
    model, ids = tiny_model(text, num_hidden_layers=12), token_ids()
    expected = logits_of(model, ids)
    counter = CompileCounter()
    for layer in model.model.layers:
        layer.compile(backend=counter)
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-5, atol=1e-5)
    assert 1 <= counter.frame_count <= most
    # and a second forward compiles nothing more
    frames = counter.frame_count
    logits_of(model, ids)
    assert counter.frame_count == frames
    torch.compiler.reset()
