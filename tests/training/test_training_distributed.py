"""Several processes compute what one computes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny_llama
from training_processes import Job, run_jobs

from mixln.data import PreparedData, prepare_data
from mixln.errors import InputError
from mixln.tasks import FineTuning, Recipe, pretrain
from mixln.tasks.build import model_without_weights
from mixln.tasks.objective import SPLIT_EVENLY, check_tensor_parallel_size
from mixln.training import ExecutionConfig, read_metrics, train
from mixln.training.distributed import Processes, check_batch, started_processes
from mixln.training.saved_checkpoint import list_checkpoints

DDP = ExecutionConfig(strategy="ddp", layer_metrics_every=10)
FSDP = replace(DDP, strategy="fsdp")


@pytest.fixture(scope="module")
def cache(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared_cache")
    prepare_data(recipe.data, folder)
    return folder


@pytest.fixture(scope="module")
def long(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=30)


def placed(recipe: Recipe, placement: str, execution: ExecutionConfig = DDP) -> Recipe:
    return replace(recipe, model=replace(recipe.model, placement=placement), execution=execution)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def assert_same_run(folder: Path, reference: Path) -> None:
    expected = losses(reference)
    assert len(expected) == 30
    assert losses(folder) == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0] - 0.1
    lines = zip(read_metrics(folder), read_metrics(reference), strict=True)
    assert all(line["tokens"] == other["tokens"] for line, other in lines)
    assert read_metrics(folder)[-1]["validation_loss"] == pytest.approx(
        read_metrics(reference)[-1]["validation_loss"], abs=1e-5
    )
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (folder, reference))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=2e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "placements",
    [["mix"], ["admin", "lns", "deepnorm", "hybrid+gpas"]],
    ids=lambda some: "-".join(some),
)
def test_ddp_and_fsdp_give_the_losses_of_one_process(
    placements: list[str], long: Recipe, data: PreparedData, cache: Path, tmp_path: Path
) -> None:
    """float32, 30 steps, the same global batch; FSDP2 starts from the meta device, each process with its own shards."""
    jobs: list[Job] = []
    for placement in placements:
        # with one placement, gradients are accumulated on every process too
        own = replace(long, micro_batch_size=1 if placement == "mix" else None)
        pretrain(placed(own, placement), data, tmp_path / placement)
        jobs += [
            Job(placed(own, placement, execution), tmp_path / f"{placement}-{execution.strategy}")
            for execution in (DDP, FSDP)
        ]
    run_jobs(jobs, cache)
    for placement in placements:
        for execution in (DDP, FSDP):
            assert_same_run(tmp_path / f"{placement}-{execution.strategy}", tmp_path / placement)


@pytest.mark.slow
def test_a_trained_model_of_another_library_is_shared_out_too(
    long: Recipe, data: PreparedData, cache: Path, tmp_path: Path
) -> None:
    source = save_tiny_llama(tmp_path / "source", data.tokenizer, 4)
    train(FineTuning(source, placed(long, "pre"), data), tmp_path / "one")
    jobs = [
        Job(placed(long, "pre", execution), tmp_path / execution.strategy, pretrained=source)
        for execution in (DDP, FSDP)
    ]
    run_jobs(jobs, cache)
    for execution in (DDP, FSDP):
        assert_same_run(tmp_path / execution.strategy, tmp_path / "one")


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_another_sharding(
    long: Recipe, data: PreparedData, cache: Path, tmp_path: Path
) -> None:
    pretrain(placed(long, "mix"), data, tmp_path / "one")
    # two sharded processes, then one, then two whole ones
    run_jobs([Job(placed(long, "mix", FSDP), tmp_path / "run", interrupt_after=10)], cache)
    assert [path.name for path in list_checkpoints(tmp_path / "run")][-1] == "step_00000010"
    stopping = replace(long.execution, checkpoint_every=1)

    class EnoughError(Exception):
        pass

    def stop(step: int, *_: float) -> None:
        if step == 20:
            raise EnoughError

    with pytest.raises(EnoughError):
        pretrain(placed(long, "mix", stopping), data, tmp_path / "run", stop)
    run_jobs([Job(placed(long, "mix", DDP), tmp_path / "run")], cache)
    assert_same_run(tmp_path / "run", tmp_path / "one")


@pytest.mark.slow
def test_activation_checkpointing_computes_the_same(
    long: Recipe, data: PreparedData, cache: Path, tmp_path: Path
) -> None:
    pretrain(placed(long, "mix"), data, tmp_path / "one")
    run_jobs([Job(placed(long, "mix", replace(FSDP, activation_checkpointing=True)), tmp_path / "two")], cache)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_data_and_tensor_parallelism_together(long: Recipe, data: PreparedData, cache: Path, tmp_path: Path) -> None:
    pretrain(placed(long, "mix"), data, tmp_path / "one")
    run_jobs([Job(placed(long, "mix", replace(FSDP, tensor_parallel_size=2)), tmp_path / "four")], cache, processes=4)
    assert_same_run(tmp_path / "four", tmp_path / "one")


_DIES_ONCE = """
import os, signal, sys
from pathlib import Path
from tiny import save_tiny_llama
from training_processes import Job
from test_training_distributed import placed, DDP
from mixln.data import prepare_data
from mixln.tasks import pretrain
from tiny import tiny_recipe
import torch
from dataclasses import replace

torch.set_num_threads(1)
corpus, cache, folder = map(Path, sys.argv[1:])
recipe = replace(tiny_recipe(corpus), steps=30)
recipe = placed(recipe, "mix", replace(DDP, strategy="fsdp", checkpoint_every=5))
died = folder.with_suffix(".died")

def die(step, *_):
    if step == 17 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)

pretrain(recipe, prepare_data(recipe.data, cache), folder, die)
"""


@pytest.mark.slow
def test_torchrun_restarts_a_lost_worker_and_the_run_goes_on(
    long: Recipe, data: PreparedData, cache: Path, corpus: Path, tmp_path: Path
) -> None:
    pretrain(placed(long, "mix"), data, tmp_path / "one")
    script = tmp_path / "dies_once.py"
    here = Path(__file__).parent
    script.write_text(f"import sys\nsys.path[:0] = [{str(here)!r}, {str(here.parent / 'support')!r}]\n{_DIES_ONCE}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    # without this, torchrun (2.14) keeps the addresses of the dead workers for the new ones to find
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [*launcher, str(script), str(corpus), str(cache), str(tmp_path / "run")],
        capture_output=True, text=True, timeout=400, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run.died").exists()
    assert_same_run(tmp_path / "run", tmp_path / "one")


def test_processes_must_fit_the_recipe(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(InputError, match=r"strategy fsdp, not with ddp"),
        started_processes(ExecutionConfig(tensor_parallel_size=2)),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(InputError, match=r"does not divide the 3 processes"),
        started_processes(replace(FSDP, tensor_parallel_size=2)),
    ):
        pass

    three = type("Three", (Processes,), {"data_count": 3})(torch.device("cpu"))
    with pytest.raises(InputError, match=r"batch_size \(4\) is not a multiple of the 3 processes"):
        check_batch(recipe.batch_size, three)


def test_tensor_parallelism_splits_heads_evenly(recipe: Recipe, data: PreparedData) -> None:
    config = model_without_weights(recipe, data.tokenizer).config
    sizes = {name: getattr(config, name) for name in SPLIT_EVENLY}
    check_tensor_parallel_size(sizes, 4)
    with pytest.raises(InputError, match=r"\(3\) does not divide num_attention_heads \(4\)"):
        check_tensor_parallel_size(sizes, 3)
