"""Folders of prepared data that are given as a corpus: recognised by their manifest, and held against the settings."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mixln.data.build import FORMAT_VERSION, TOKENIZER_FOLDER, DataStatistics
from mixln.data.config import DataConfig
from mixln.data.corpora import is_path
from mixln.data.tokenizer import load_training_tokenizer, tokenizer_hash
from mixln.errors import InputError
from mixln.manifest import MANIFEST_FILE, read_manifest
from mixln.models.encoding import DocumentEncoder
from mixln.records import read_json

_FREE = frozenset({"corpus", "tokenizer", "sequence_length", "cross_documents"})
"""Settings that do not decide on the tokens, or are compared by other means."""


def find_prepared_folder(source: str) -> Path | None:
    """The folder that `source` names if it holds prepared data, else None."""
    if not is_path(source):
        return None
    try:
        folder = Path(source).expanduser()
        manifest: object = read_json(folder / MANIFEST_FILE)
    except (OSError, InputError, RuntimeError):
        return None
    is_ours = isinstance(manifest, dict) and {"mixln", "format", "fingerprint", "settings"} <= manifest.keys()
    return folder if is_ours else None


def open_prepared_folder(folder: Path, config: DataConfig) -> dict[str, Any]:
    """The manifest of prepared data, checked against the settings.

    A setting that has its default value counts as not given.

    Raises:
        InputError: The folder is damaged, of another format, or made with other settings than those given.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        raise InputError(f"prepared data in {folder} are damaged ({error}); copy or prepare them again") from error
    assert manifest is not None
    if manifest["format"] != FORMAT_VERSION:
        raise InputError(
            f"{folder} was prepared by mixln {manifest['mixln']} in format {manifest['format']}, and this version "
            f"reads format {FORMAT_VERSION}; prepare it again with `mixln data prepare`"
        )
    _check_contents(folder, manifest)
    encoder = DocumentEncoder(load_training_tokenizer(str(folder / TOKENIZER_FOLDER)))
    if manifest["tokenizer"].get("begin", []) != list(encoder.begin):
        raise InputError(
            f"the documents in {folder} lack the tokens that their tokenizer puts before a text: they were prepared by "
            f"mixln {manifest['mixln']}; prepare them again with `mixln data prepare`"
        )
    made_with: dict[str, Any] = manifest["settings"]
    ignored = set(_FREE)
    if made_with["tokenizer"] is not None:
        ignored |= {"vocab_size", "tokenizer_training_characters"}  # which had no effect
    if made_with["validation_corpus"] is not None:
        ignored.add("validation_fraction")
    default = asdict(DataConfig())
    for name, value in asdict(config).items():
        if name not in ignored and value not in (default[name], made_with[name]):
            raise _contradiction(folder, name, made_with[name], value)
    if config.tokenizer not in (None, made_with["tokenizer"]):
        _check_tokenizer(folder, manifest, config.tokenizer)
    return manifest


def _check_contents(folder: Path, manifest: dict[str, Any]) -> None:
    """Make sure that a manifest says what is read from it; the checksums in it are of the other files."""
    settings = {field.name for field in fields(DataConfig)}
    try:
        DataStatistics.from_manifest(manifest)
        is_sound = settings <= manifest["settings"].keys() and {"sha256"} <= manifest["tokenizer"].keys()
    except (KeyError, AttributeError, InputError):
        is_sound = False
    if not is_sound:
        raise InputError(f"{folder / MANIFEST_FILE} is damaged: copy the prepared data or prepare them again")


def _check_tokenizer(folder: Path, manifest: dict[str, Any], name: str) -> None:
    """Accept a folder with the same tokenizer; another hub name is refused without asking the hub."""
    folder_given = Path(name).expanduser()
    same = folder_given.is_dir() and tokenizer_hash(load_training_tokenizer(name)) == manifest["tokenizer"]["sha256"]
    if not same:
        made_with = manifest["settings"]["tokenizer"]
        kept = f"{made_with or 'trained on the corpus'} (kept in {folder / TOKENIZER_FOLDER})"
        raise _contradiction(folder, "tokenizer", kept, name)


def _contradiction(folder: Path, name: str, made_with: object, given: object) -> InputError:
    return InputError(
        f"the data in {folder} were prepared with {name}={made_with}, but {name}={given} is given; leave it out, give "
        "the same value, or prepare other data"
    )
