"""Documents streamed from a dataset on the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import datasets
from datasets.exceptions import DatasetsError

from mixln.data.corpus import Corpus, LeftOut, Part
from mixln.data.hub_errors import HUB_ERRORS
from mixln.errors import InputError
from mixln.hub import hub_access
from mixln.sources import C4

# `datasets` also raises ValueError for an unknown configuration or split, RuntimeError for a dataset that is a script.
_ERRORS = (*HUB_ERRORS, DatasetsError, ValueError, RuntimeError)


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
        self._dataset: Iterable[dict[str, object]] | None = None
        self._rows = 0
        revised = f"{self.dataset}@{revision}" if revision else self.dataset
        super().__init__(f"hf:{revised}:{self.config or ''}:{self.split}")

    def fingerprint(self) -> str:
        """sha256 over dataset, configuration, split, revision (if given) and `text_field`; needs no network."""
        key = ("hub", self.dataset, self.config, self.split, self.revision, self.text_field)
        return hashlib.sha256(repr(key).encode()).hexdigest()

    def parts(self) -> list[Part]:
        """The dataset's data files (`num_shards` of `datasets`); asks the hub which there are."""
        self.left_out = LeftOut()
        with self._hub_errors():
            self._dataset = self._load()
        return [(index, self._num_shards) for index in range(self._num_shards)]

    def _read(self, part: Part) -> Iterator[tuple[str, str]]:
        index, num_shards = cast("tuple[int, int]", part)
        self._rows = 0
        with self._hub_errors():
            assert self._dataset is not None  # `parts` comes first
            if self._num_shards != num_shards:
                raise InputError(
                    f"{self.name} had {num_shards} data files and now has {self._num_shards}: it has changed on the "
                    "hub while it was read; name a revision, as in hf:NAME@REVISION"
                )
            rows: Iterable[dict[str, object]] = self._dataset
            if num_shards > 1:
                rows = cast("datasets.IterableDataset", self._dataset).shard(num_shards, index, contiguous=True)
            for row in rows:
                self._rows += 1
                if self._rows == 1 and self.text_field not in row:
                    # Otherwise a stream of terabytes would be read in vain.
                    raise InputError(
                        f"{self.name}: no column {self.text_field!r}; set text_field to one of: {', '.join(row)}"
                    )
                place = f"row {self._rows}" if num_shards == 1 else f"data file {index}, row {self._rows}"
                yield from self._text(row.get(self.text_field), self.text_field, place)

    def rows(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Yield whole rows, each with its place.

        Raises:
            InputError: hub and dataset cannot be reached, or the dataset has no such configuration or split.
        """
        with self._hub_errors():
            for row in self._load():
                self._rows += 1
                yield f"{self.name}, row {self._rows}", row

    def _load(self) -> Iterable[dict[str, object]]:
        revision, split = self.revision, self.split
        with hub_access(self.dataset, "dataset", local=False):
            loaded = datasets.load_dataset(self.dataset, self.config, split=split, revision=revision, streaming=True)
        return cast("Iterable[dict[str, object]]", loaded)

    @property
    def _num_shards(self) -> int:
        return int(getattr(self._dataset, "num_shards", 1))

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except _ERRORS as error:
            where = f"dataset {self.dataset}, configuration {self.config or 'default'}, split {self.split}"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"cannot read {where} from the Hugging Face hub (stopped after {self._rows:,} rows): {reason}; check "
                "the name and the network, or give the path of local files"
            ) from error
