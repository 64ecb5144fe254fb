"""Documents streamed from a dataset on the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import datasets
from datasets.exceptions import DatasetsError

from mixln.data.corpus import Corpus
from mixln.data.hub_errors import HUB_ERRORS
from mixln.errors import InputError

# `datasets` also raises ValueError for an unknown configuration or split, RuntimeError for a dataset that is a script.
_ERRORS = (*HUB_ERRORS, DatasetsError, ValueError, RuntimeError)

C4 = ("allenai/c4", "en")
"""Name and configuration of the corpus of the published recipes."""


class HubCorpus(Corpus):
    """Rows of one split of a hub dataset, in the dataset's order, streamed; nothing is stored.

    Args:
        specification: `NAME[@REVISION][:CONFIG[:SPLIT]]`; an empty NAME is allenai/c4 (CONFIG en), SPLIT is train
            unless given. With a REVISION (a commit of the dataset) the fingerprint pins the content; without one,
            a dataset that changes on the hub keeps its fingerprint.
        text_field: The column that holds the document.

    Raises:
        InputError: More than two colons; or, while reading, hub and dataset cannot be reached, or the dataset has no
            such configuration, split or column.
    """

    unbounded = True

    def __init__(self, specification: str, text_field: str) -> None:
        parts = specification.split(":")
        if len(parts) > 3:
            raise InputError(f"hf:{specification} has too many colons; write hf:NAME[@REVISION][:CONFIG[:SPLIT]]")
        name, config, split = (*parts, "", "")[:3]
        name, _, revision = name.partition("@")
        self.dataset = name or C4[0]
        self.config = config or (C4[1] if self.dataset == C4[0] else None)
        self.split = split or "train"
        self.revision = revision or None
        self.text_field = text_field
        revised = f"{self.dataset}@{revision}" if revision else self.dataset
        super().__init__(f"hf:{revised}:{self.config or ''}:{self.split}")

    def fingerprint(self) -> str:
        """sha256 over dataset, configuration, split, revision (if given) and `text_field`; needs no network."""
        key = ("hub", self.dataset, self.config, self.split, self.revision, self.text_field)
        return hashlib.sha256(repr(key).encode()).hexdigest()

    def _read(self) -> Iterator[tuple[str, str]]:
        count = 0
        try:
            rows: datasets.IterableDataset = datasets.load_dataset(
                self.dataset, self.config, split=self.split, revision=self.revision, streaming=True
            )
            for row in rows:
                count += 1
                text = row.get(self.text_field)
                if count == 1 and self.text_field not in row:
                    # Otherwise a stream of terabytes would be read in vain.
                    raise InputError(
                        f"{self.name}: no column {self.text_field!r}; set text_field to one of: {', '.join(row)}"
                    )
                if isinstance(text, str):
                    yield text, f"row {count}"
                else:
                    self._skip(f"field {self.text_field!r} is not a string", f"row {count}")
        except InputError:
            raise
        except _ERRORS as error:
            where = f"dataset {self.dataset}, configuration {self.config or 'default'}, split {self.split}"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"cannot read {where} from the Hugging Face hub (stopped after {count:,} rows): {reason}; check the "
                "name and the network, or give the path of local files"
            ) from error
