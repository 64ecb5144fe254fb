"""`mixln generate`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from mixln.commands.arguments import Command, command_parser
from mixln.models.generate import generate_text


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln generate`."""
    parser = command_parser(
        "Continue a text with a trained model.", 'mixln generate runs/train/model "The module" --max-new-tokens 100'
    )
    parser.add_argument("model", type=str, help="Hugging Face folder, or name on the hub")
    parser.add_argument("text", type=str, help="what to continue")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="tokens to generate at most")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, help="sample from the likeliest tokens of this total")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln generate`."""
    print(
        generate_text(
            given.model,
            given.text,
            max_new_tokens=given.max_new_tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            seed=given.seed,
        )
    )
    return 0


COMMAND = Command("generate", "text from a checkpoint", build_parser, run)
