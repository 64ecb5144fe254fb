"""What each of two processes does in the test of sharded initialisation; a module of its own so that spawn finds it."""

from __future__ import annotations

from pathlib import Path

import torch
from models_tools import tiny_config
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mixln import MixLNLlamaForCausalLM

WORLD = 2


def initialise_shards(rank: int, folder: str, texts: list[str]) -> None:
    """Build each model on the meta device, shard it, fill it, and save what the gathered parameters are."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        mesh = init_device_mesh("cpu", (WORLD,))
        for number, text in enumerate(texts):
            with torch.device("meta"):
                model = MixLNLlamaForCausalLM(tiny_config(text))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            model.to_empty(device="cpu")
            model.initialize(7)
            gathered: dict[str, torch.Tensor] = {}
            for name, parameter in model.named_parameters():
                assert isinstance(parameter, DTensor), name
                assert parameter.to_local().numel() < parameter.numel(), name
                gathered[name] = parameter.full_tensor().detach()
            gathered |= {name: buffer.detach() for name, buffer in model.named_buffers()}
            torch.save(gathered, Path(folder) / f"{number}-{rank}.pt")
    finally:
        distributed.destroy_process_group()
