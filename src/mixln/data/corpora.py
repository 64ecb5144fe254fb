"""From what the user writes to a corpus."""

from __future__ import annotations

from pathlib import Path

from mixln.data.corpus import Corpus
from mixln.data.corpus_files import FileCorpus
from mixln.data.corpus_hub import HubCorpus
from mixln.data.corpus_python import PythonCorpus
from mixln.errors import InputError
from mixln.placement.words import did_you_mean


def open_corpus(source: str, *, text_field: str = "text") -> Corpus:
    """Open a corpus; nothing is read yet.

    Args:
        source: One of
            `python`: documentation and sources of the running Python's standard library, on every machine;
            `hf:NAME[@REVISION][:CONFIG[:SPLIT]]`: a Hugging Face dataset, streamed;
            `c4[:CONFIG[:SPLIT]]`: short for hf:allenai/c4, English unless CONFIG says otherwise;
            else the path of a file or folder (`./python` for a folder of that name).
        text_field: Field (JSON lines) or column (Parquet, hub) that holds the document.

    Raises:
        InputError: There is no such path, or its kind is unknown.
    """
    if source == "python":
        return PythonCorpus("python")
    if source == "c4" or source.startswith("c4:"):
        return HubCorpus(source.removeprefix("c4"), text_field)
    if source.startswith("hf:"):
        return HubCorpus(source.removeprefix("hf:"), text_field)
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise InputError(f"no corpus {source!r}: {error}") from error
    if source and path.exists():
        return FileCorpus(path, text_field)
    raise InputError(_missing(source, path))


def is_path(source: str) -> bool:
    """True if `open_corpus` takes the source for a path."""
    return source not in ("python", "c4") and not source.startswith(("c4:", "hf:"))


def _missing(source: str, path: Path) -> str:
    try:
        neighbours = [str(path.parent / entry.name) for entry in path.parent.iterdir()]
    except OSError:  # no such folder, or not ours to read
        neighbours = []
    hint = did_you_mean(source, ["python", "c4", *neighbours], most=3)
    name = source if source.count("/") <= 1 and not source.startswith((".", "/", "~")) and source else "NAME"
    return (
        f"no corpus {source!r}.{hint} Give the path of a file or folder, `python` (the standard library's own text), "
        f"`c4`, or `hf:{name}` for a dataset on the Hugging Face hub"
    )
