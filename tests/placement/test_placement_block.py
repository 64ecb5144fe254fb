"""`Block` around anyone's modules, over the registry: scalars survive everything, and a stack trains."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from placement_tools import PLACEMENTS, ROLES, WIDTH, Attention, Stack, make_mlp
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

import mixln.placement
from mixln.placement import Block, Placement, initialize, norm_factory

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")
PACKAGE = Path(mixln.placement.__file__).parent


def make_stack(text: str, num_layers: int = 4) -> Stack:
    plan = Placement.parse(text).plan(num_layers)
    stack = Stack(plan)
    initialize(stack, plan, ROLES, seed=0, hidden_size=WIDTH, base_std=0.2)
    return stack


@pytest.mark.parametrize("text", PLACEMENTS)
def test_a_hand_written_stack_learns(text: str) -> None:
    stack = make_stack(text)
    ids = torch.randint(11, (8, 10), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(stack.parameters(), lr=3e-3)
    losses: list[float] = []
    for _ in range(6):
        loss = F.cross_entropy(stack(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in stack.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_keyword_arguments_of_the_call_reach_the_attention() -> None:
    stack = make_stack("pre", 1)
    x = torch.randn(1, 5, WIDTH)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    changed = x.clone()
    changed[:, -1] += 1
    assert torch.equal(stack.blocks[0](x, attn_mask=mask)[:, :-1], stack.blocks[0](changed, attn_mask=mask)[:, :-1])
    assert not torch.allclose(stack.blocks[0](x)[:, 0], stack.blocks[0](changed)[:, 0])


def measured_gains(stack: Stack) -> list[float]:
    """Input of each sublayer over the output of the norm before it, by hooks in a forward."""
    seen: list[torch.Tensor] = []
    handles: list[RemovableHandle] = []

    def keep_output(_module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(output)

    def keep_input(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])

    for block in stack.blocks:
        assert isinstance(block, Block)
        for norm, sublayer in (
            (block.input_layernorm, block.attention),
            (block.post_attention_layernorm, block.feed_forward),
        ):
            assert isinstance(norm, nn.Module)
            handles.append(norm.register_forward_hook(keep_output))
            handles.append(sublayer.register_forward_pre_hook(keep_input))
    stack(torch.arange(10).view(2, 5))
    for handle in handles:
        handle.remove()
    ratios = [after / before for before, after in zip(seen[::2], seen[1::2], strict=True)]
    for ratio in ratios:
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)
    return [ratio.mean().item() for ratio in ratios]


def test_the_depth_scale_is_applied_and_survives_copies_and_empty_weights() -> None:
    expected = pytest.approx([depth**-0.5 for depth in range(1, 7) for _ in range(2)], rel=1e-4)
    stack = make_stack("lns", 6)
    assert measured_gains(stack) == expected
    assert measured_gains(copy.deepcopy(stack)) == expected

    plan = Placement.parse("lns").plan(6)
    with torch.device("meta"):
        empty = Stack(plan)
    empty.to_empty(device="cpu")
    empty.load_state_dict(stack.state_dict())
    assert measured_gains(empty) == expected
    assert measured_gains(stack.to(torch.float64)) == expected


@pytest.mark.parametrize("num_layers", [2, 8])
def test_deepnorm_scales_the_stream_by_rho_in_the_forward(num_layers: int) -> None:
    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    for text, rho in (("deepnorm", (2 * num_layers) ** 0.25), ("deepnorm(residual_scale=2.5)", 2.5)):
        for block_plan in Placement.parse(text).plan(num_layers).blocks:
            block = Block(block_plan, Zero(), Zero(), norm_factory(WIDTH), WIDTH)
            block.post_attention_layernorm = nn.Identity()
            block.post_feedforward_layernorm = nn.Identity()
            x = torch.randn(1, 2, WIDTH)
            torch.testing.assert_close(block(x), x * rho**2)


def test_deep_layers_of_a_post_ln_stack_do_not_grow() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, WIDTH)
    for block_plan in Placement.parse("post").plan(8).blocks:
        x = Block(block_plan, Attention(), make_mlp(), norm_factory(WIDTH), WIDTH)(x)
        torch.testing.assert_close(x.pow(2).mean(-1), torch.ones(2, 5), rtol=1e-4, atol=0)


def test_the_placement_package_imports_only_pytorch_and_itself() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) >= 7
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file.name}: relative import"
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                allowed = module.split(".")[0] in {*sys.stdlib_module_names, "torch"}
                assert allowed or f"{module}.".startswith("mixln.placement."), f"{file.name} imports {module}"


def test_the_placement_package_runs_where_transformers_is_not() -> None:
    script = f"""
import sys, types
sys.modules["transformers"] = None
sys.modules["mixln"] = package = types.ModuleType("mixln")
package.__path__ = [{str(PACKAGE.parent)!r}]
import mixln.placement
print(len(mixln.placement.Placement.parse("mix").plan(12).blocks))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "12"), done.stderr


def test_plans_and_pages_of_schemes_need_no_pytorch() -> None:
    script = """
import sys
from mixln.placement import Placement
from mixln.placement.registry import MODIFIERS, SCHEMES
from mixln.report.scheme_diagram import describe_stack
from mixln.report.scheme_pages import scheme_table, term_page

scheme_table([*SCHEMES.values(), *MODIFIERS.values()], "all")
term_page(SCHEMES["mix"])
describe_stack(Placement.parse("mix(alpha=0.5)+gpas").plan(12)).kinds[0].draw()
print(*sorted({"torch", "transformers", "matplotlib"} & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
