"""A model whose tokenizer begins every text with a token of its own, through norm removal and healing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHARED, loss_of_packed_tokens, save_tiny_llama, with_begin_token, write_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mixln.cli import main
from mixln.data import PreparedData
from mixln.models.generate import generate_text
from mixln.studies.prune_and_heal import PruneAndHeal
from mixln.studies.pruning_request import PruningRequest
from mixln.studies.remove_norm import RemoveNorm
from mixln.tasks import HealingConfig
from mixln.tasks.norm_removal.config import NormRemovalConfig

ROW = 64


def opened(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def documents_of(work: Any, source: Path, texts: Sequence[str]) -> list[list[int]]:
    """The validation documents, in the tokens that transformers' tokenizer makes of their texts."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    made = [[*tokenizer(text, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id] for text in texts]
    store = work._data.validation.store
    ends = store.document_ends.tolist()
    found = [store.tokens[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]
    assert all(document in made for document in found[:-1])
    assert any(found[-1] == document[: len(found[-1])] for document in made)  # cut at the limit
    return found


def remove_norms(source: Path, text: Path, texts: Sequence[str], folder: Path, **options: Any) -> None:
    config = NormRemovalConfig(sequence_length=ROW, precision="float32", **options)
    with RemoveNorm(str(source), config, str(text), folder / "out") as work:
        work.prepare(folder / "cache", lambda _: None)
        work.measure_original()
        work.remove()
        report = work.report()
        work.write(report)
        documents = documents_of(work, source, texts)
    for model, loss in ((source, report.loss_original), (folder / "out", report.loss_norm_free)):
        total, predicted = loss_of_packed_tokens(opened(model), documents, ROW)
        assert predicted == report.validation_tokens
        assert total / predicted == pytest.approx(loss, abs=1e-3)
    assert report.loss_norm_free < report.loss_original + 1


def prune_and_heal(source: Path, text: Path, texts: Sequence[str], folder: Path, **options: Any) -> None:
    config = HealingConfig(sequence_length=ROW, precision="float32", **options)
    with PruneAndHeal(PruningRequest(str(source), layers=(2,)), config, str(text), folder / "out") as work:
        work.prepare(folder / "cache", lambda _: None)
        work.prune(lambda _: None)
        report = work.heal()
        documents = documents_of(work, source, texts)
    losses = [(source, report.loss_before), (folder / "out", report.loss_healed)]
    losses.append((folder / "out.healing" / "pruned", report.loss_pruned))
    for model, loss in losses:
        total, predicted = loss_of_packed_tokens(opened(model), documents, ROW)
        assert predicted == report.validation_tokens
        assert total / predicted == pytest.approx(loss, abs=1e-3)


def test_losses_are_of_text_as_the_tokenizer_makes_it(data: PreparedData, tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "corpus")
    texts = [file.read_text(encoding="utf-8") for file in sorted(text.iterdir())]
    tokenizer = with_begin_token(data.tokenizer)
    source = save_tiny_llama(tmp_path / "model", tokenizer, 3, max_position_embeddings=128, initializer_range=0.04)
    options: dict[str, Any] = {"batch_size": 4, "max_validation_tokens": 1000}
    remove_norms(source, text, texts, tmp_path / "removal", steps=24, spike_threshold=100.0, **options)
    prune_and_heal(source, text, texts, tmp_path / "healing", tokens=1000, **options)
    assert generate_text(str(source), "", max_new_tokens=3, temperature=0)


@pytest.fixture(scope="module")
def real_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = SHARED / "tools" / "get_models.py"
    if not script.is_file():
        pytest.skip(f"the trained weights are not on this machine ({script})")
    folder = tmp_path_factory.mktemp("real")
    done = subprocess.run(
        [sys.executable, str(script), "stories", "--out", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def told(model: Path, folder: Path, number: int) -> tuple[Path, list[str]]:
    """A corpus of what a model itself tells, a story a line."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    generator: Any = opened(model)
    begin = torch.full((number, 1), tokenizer.bos_token_id)
    rows = generator.generate(begin, max_new_tokens=150, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=[1, 2])
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    path = folder / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path, texts


@pytest.mark.slow
def test_stories260k_keeps_telling_stories(real_models: Path, tmp_path: Path) -> None:
    source = real_models / "stories"
    text, texts = told(source, tmp_path, 160)
    remove_norms(source, text, texts, tmp_path / "removal", steps=100, batch_size=16, max_validation_tokens=2000)
    prune_and_heal(source, text, texts, tmp_path / "healing", tokens=20_000, max_validation_tokens=2000)
    # the model with norms finds what the one without tells likely: noise costs it more than 6 nats a token
    told_without = generate_text(str(tmp_path / "removal" / "out"), "Once upon a time", max_new_tokens=60, seed=1)
    ids = AutoTokenizer.from_pretrained(source)(told_without)["input_ids"]
    total, predicted = loss_of_packed_tokens(opened(source), [ids], 512)
    assert total / predicted < 4


@pytest.mark.slow
def test_a_llama_trained_here_with_a_begin_token(data: PreparedData, tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "corpus", 80)
    texts = [file.read_text(encoding="utf-8") for file in sorted(text.iterdir())]
    with_begin_token(data.tokenizer).save_pretrained(tmp_path / "tokenizer")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = [f"--model.{name}={value}" for name, value in sizes.items()]
    steps = ["--steps=300", "--batch_size=16", f"--data.sequence_length={ROW}", "--execution.compile=never"]
    where = [f"--out={tmp_path / 'run'}", f"--cache={tmp_path / 'cache'}", f"--data.tokenizer={tmp_path / 'tokenizer'}"]
    assert main(["train", "--recipe=nano", f"--text={text}", *where, *steps, *model]) == 0
    source = tmp_path / "run" / "model"
    remove_norms(source, text, texts, tmp_path / "removal", steps=120, batch_size=16, max_validation_tokens=2000)
    prune_and_heal(source, text, texts, tmp_path / "healing", tokens=20_000, max_validation_tokens=2000)
    # real words, on the whole: what was trained on is in their word list
    words = {word for one in texts for word in one.split()}
    for folder in (tmp_path / "removal" / "out", tmp_path / "healing" / "out"):
        said = generate_text(str(folder), "The", max_new_tokens=60, temperature=0.5, seed=1).split()[1:-1]
        assert sum(word in words for word in said) > 0.5 * len(said)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    source = Path.home() / ".cache" / "mixln-models" / "smollm2"
    if not (source / "complete").exists():
        pytest.skip(f"SmolLM2 is not on this machine ({source}): run tools/get_models.py of the shared folder")
    return source


# A few steps alone: of 135 million weights they take minutes. Its tokenizer begins texts with nothing.
@pytest.mark.slow
def test_smollm2_through_healing(smollm2: Path, tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "corpus", 12)
    texts = [file.read_text(encoding="utf-8") for file in sorted(text.iterdir())]
    options: dict[str, Any] = {"batch_size": 1, "max_validation_tokens": 500}
    prune_and_heal(smollm2, text, texts, tmp_path / "healing", tokens=2 * ROW, **options)


@pytest.mark.slow
def test_smollm2_before_norm_removal(smollm2: Path, tmp_path: Path) -> None:
    """Its norms cannot all go in a few steps (docs/results/norm-removal.md): what is left gives no numbers."""
    text = write_corpus(tmp_path / "corpus", 12)
    texts = [file.read_text(encoding="utf-8") for file in sorted(text.iterdir())]
    config = NormRemovalConfig(sequence_length=ROW, precision="float32", batch_size=1, max_validation_tokens=500)
    with RemoveNorm(str(smollm2), config, str(text), tmp_path / "removal" / "out") as work:
        work.prepare(tmp_path / "cache", lambda _: None)
        found = work.measure_original()
        documents = documents_of(work, smollm2, texts)
    total, predicted = loss_of_packed_tokens(opened(smollm2), documents, ROW)
    assert predicted == found.num_tokens
    assert total / predicted == pytest.approx(found.total_loss / found.num_tokens, abs=1e-3)
