"""What each criterion of pruning removes and costs: `python -m benchmarks.pruning_criteria MODEL --documents FILE`.

Layers are chosen on some documents, as `mixln prune --drop N --by ...` does, and the loss without them is that of other
documents; the interval of a difference to the whole model is over those documents, paired. No healing.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.machine import machine_line
from mixln.data import open_corpus
from mixln.measure.batches import ModelBatch
from mixln.measure.estimates import DocumentSums
from mixln.measure.performance import LanguageModelLoss
from mixln.measure.pruning import without_blocks
from mixln.measure.texts import text_batches, text_windows
from mixln.models.anatomy import find_block_stack
from mixln.models.load import load_model
from mixln.studies.diagnose import diagnose_model
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.prune import choose_layers, measures_for
from mixln.studies.pruning_request import CRITERIA

_WINDOW = 512
_PROMPT = "The ship had been at sea for three weeks when"


def row_losses(model: nn.Module, batches: list[ModelBatch]) -> torch.Tensor:
    """Total loss of each row, (rows,)."""
    with torch.no_grad():
        return torch.cat([LanguageModelLoss().on(model(**batch.arguments), batch).whole for batch in batches])


def mean_and_reach(losses: torch.Tensor, batches: list[ModelBatch]) -> tuple[float, float]:
    """The mean over tokens, and half of its interval over documents."""
    sums, start = DocumentSums(), 0
    for batch in batches:
        rows = len(batch.documents)
        counts = torch.tensor([batch.tokens_in_row(row) for row in range(rows)])
        sums.update(losses[start : start + rows], counts, batch.documents)
        start += rows
    found = sums.estimate()
    return found.value.item(), (found.high - found.value).item()


def continuation(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the model writes after the prompt, by the likeliest token each time, without repeating four tokens."""
    inputs = tokenizer(_PROMPT, return_tensors="pt")
    generate = getattr(model, "generate")  # noqa: B009 - to the type checker a model cannot
    output = generate(**inputs, max_new_tokens=30, do_sample=False, no_repeat_ngram_size=4)
    text = str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return " ".join(text.split())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or hub name of a causal language model")
    parser.add_argument("--documents", default="python", metavar="FILE", help="to choose on; default: python")
    parser.add_argument("--validation", required=True, metavar="FILE", help="other documents, for the loss")
    parser.add_argument("--drop", type=int, default=5, help="default: 5")
    parser.add_argument("--tokens", type=int, default=8192, help="to choose on; default: 8192")
    parser.add_argument("--validation-tokens", type=int, default=32_768, help="default: 32768")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    model, tokenizer = load_model(given.model, dtype=given.dtype)
    config = DiagnosisConfig(
        sequence_length=_WINDOW,
        max_tokens=given.tokens,
        performance_tokens=given.tokens,
        gradient_tokens=0,
        run_lengths=(given.drop,),
        measures=tuple({name for criterion in CRITERIA for name in measures_for(criterion)}),
    )
    diagnosis = diagnose_model(model, tokenizer, open_corpus(given.documents).documents(), config)
    windows = text_windows(
        tokenizer,
        open_corpus(given.validation).documents(),
        _WINDOW,
        given.validation_tokens,
        256,
        special_tokens=False,
    )
    batches = text_batches(windows, 8, 0, predicts_next=True)
    stack = find_block_stack(model)
    whole = row_losses(model, batches)
    loss, reach = mean_and_reach(whole, batches)
    print(f"{machine_line()}, {model.dtype}, {len(windows)} windows of {_WINDOW} tokens")
    print(f"| criterion | layers removed | loss | more than whole | perplexity | goes on: {_PROMPT} ... |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    perplexity = torch.tensor(loss).exp()
    print(
        f"| (whole) | | {loss:.3f} ± {reach:.3f} | | {perplexity:.2f} | {continuation(model, tokenizer)} |", flush=True
    )
    for criterion in CRITERIA:
        for consecutive in (True, False):
            chosen = choose_layers(diagnosis, given.drop, criterion, consecutive=consecutive)
            with without_blocks(stack, chosen):
                losses = row_losses(model, batches)
                text = continuation(model, tokenizer)
            more, reach = mean_and_reach(losses - whole, batches)
            what = f"{criterion}, {'a run' if consecutive else 'any'}"
            layers = ", ".join(str(index + 1) for index in chosen)
            perplexity = torch.tensor(loss + more).exp()
            print(f"| {what} | {layers} | {loss + more:.3f} | {more:+.3f} ± {reach:.3f} | {perplexity:.2f} | {text} |")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
