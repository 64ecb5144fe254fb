from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mixln.data import (
    PackedDataset,
    TokenStore,
    TokenStoreWriter,
    evaluation_batches,
    training_batch,
    training_rows,
)
from mixln.errors import InputError
from mixln.models.encoding import IGNORED_TARGET

EOS = 0


def write_store(folder: Path, lengths: list[int], vocab_size: int = 60_000) -> TokenStore:
    """Documents of the given lengths (their end included) whose tokens count 1, 2, 3, ... through the whole store."""
    number = 0
    with TokenStoreWriter(folder, vocab_size) as writer:
        for length in lengths:
            writer.append(np.append(np.arange(number + 1, number + length), EOS))
            number += length
    return TokenStore(folder, EOS)


@pytest.fixture(params=range(8))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TokenStore:
    generator = np.random.default_rng(request.param)
    lengths = generator.integers(1, [2, 3, 20, 60][request.param % 4], size=generator.integers(1, 40), endpoint=True)
    return write_store(tmp_path / "store", [int(length) for length in lengths])


def reference(store: TokenStore, length: int, keep_partial: bool, cross: bool) -> list[tuple[list[int], ...]]:
    """The rows, token by token, as the docstring has them."""
    tokens = [int(token) for token in store.tokens]
    document, first = [], []
    for index, end in enumerate(store.document_ends):
        start = 0 if index == 0 else int(store.document_ends[index - 1])
        document += [index] * (int(end) - start)
        first += [start] * (int(end) - start)
    rows = []
    for start in range(0, len(tokens) - 1, length):
        inputs, targets, positions = [], [], []
        for t in range(start, start + length):
            if t + 1 < len(tokens):
                inputs.append(tokens[t])
                targets.append(tokens[t + 1] if cross or document[t] == document[t + 1] else IGNORED_TARGET)
                positions.append(t - (start if cross else max(start, first[t])))
            elif keep_partial:
                inputs.append(EOS)
                targets.append(IGNORED_TARGET)
                positions.append(t - (len(tokens) - 1))
        if len(inputs) == length:
            rows.append((inputs, targets, positions))
    return rows


@pytest.mark.parametrize("length", [1, 2, 7, 16, 500])
@pytest.mark.parametrize("keep_partial", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_rows_are_those_of_the_reference(store: TokenStore, length: int, keep_partial: bool, cross: bool) -> None:
    dataset = PackedDataset(store, length, keep_partial=keep_partial, cross_documents=cross)
    expected = reference(store, length, keep_partial, cross)
    assert len(dataset) == len(expected)
    batches = list(evaluation_batches(dataset, 3))
    rows = [
        (inputs.tolist(), targets.tolist(), positions.tolist())
        for batch in batches
        for inputs, targets, positions in zip(batch.input_ids, batch.targets, batch.position_ids, strict=True)
    ]
    assert rows == expected
    assert sum(batch.num_predicted_tokens for batch in batches) == dataset.num_predicted_tokens
    assert all(batch.input_ids.dtype == torch.int64 for batch in batches)


@pytest.mark.parametrize("length", [1, 5, 64])
def test_every_token_but_the_first_of_each_document_is_predicted_once(tmp_path: Path, length: int) -> None:
    generator = np.random.default_rng(0)
    lengths = [int(n) for n in generator.integers(1, 50, size=60)]
    # End tokens are numbered too, so that every token of the store is different.
    with TokenStoreWriter(tmp_path, 10_000) as writer:
        number = 1
        for n in lengths:
            writer.append(np.arange(number, number + n))
            number += n
    store = TokenStore(tmp_path, EOS)
    firsts = {1, *(int(end) + 1 for end in store.document_ends[:-1])}

    def predicted(dataset: PackedDataset) -> list[int]:
        targets = torch.cat([batch.targets.flatten() for batch in evaluation_batches(dataset, 7)])
        return targets[targets != IGNORED_TARGET].tolist()

    everything = [token for token in range(1, number) if token not in firsts]
    evaluation = PackedDataset(store, length, keep_partial=True)
    assert predicted(evaluation) == everything
    assert evaluation.num_predicted_tokens == len(store) - len(lengths)
    training = PackedDataset(store, length)
    assert predicted(training) == [token for token in everything if token <= len(training) * length + 1]
    assert (len(store) - 1) - len(training) * length < length
    assert predicted(PackedDataset(store, length, keep_partial=True, cross_documents=True)) == list(range(2, number))


def test_one_epoch_of_training_sees_every_row_once_and_the_next_another_order() -> None:
    for rows, batch_size in ((24, 4), (25, 4), (3, 8), (1, 5), (7, 7)):
        steps = -(-3 * rows // batch_size)
        sequence = np.concatenate([training_rows(rows, step, batch_size, seed=1) for step in range(steps)])
        for epoch in range(3):
            assert sorted(sequence[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
        if rows > 20:
            assert list(sequence[:rows]) != list(sequence[rows : 2 * rows])
            assert list(sequence[:rows]) != list(training_rows(rows, 0, rows, seed=2))


def test_the_order_depends_on_seed_and_step_alone() -> None:
    late = training_rows(1000, 700, 8, seed=3)
    for step in (0, 699, 10_000):
        training_rows(1000, step, 8, seed=3)
    assert training_rows(1000, 700, 8, seed=3).tolist() == late.tolist()
    assert training_rows(1000, 700, 8, seed=4).tolist() != late.tolist()


@pytest.mark.parametrize("shard_tokens", [1, 7, 64, 100, 101])
def test_rows_may_straddle_shards(tmp_path: Path, shard_tokens: int) -> None:
    lengths = [30, 1, 40, 31, 200, 3]
    whole = write_store(tmp_path / "whole", lengths)
    number = 0
    with TokenStoreWriter(tmp_path / "cut", 60_000, shard_tokens=shard_tokens) as writer:
        documents = np.split(np.asarray(whole.tokens), whole.document_ends[:-1])
        writer.extend(np.concatenate(documents[:3]), np.array(lengths[:3]))
        for document in documents[3:]:
            writer.append(document)
        number = len(writer.shard_sizes)
        assert sum(writer.shard_sizes) == 305
    cut = TokenStore(tmp_path / "cut", EOS)
    assert len(cut.shards) == number == -(-305 // shard_tokens)
    assert {len(shard) for shard in cut.shards[:-1]} == {shard_tokens}
    assert cut.tokens.tolist() == whole.tokens.tolist()
    assert cut.document_ends.tolist() == whole.document_ends.tolist()
    for length in (1, 16, 150):
        for batches in zip(
            *(evaluation_batches(PackedDataset(store, length, keep_partial=True), 5) for store in (whole, cut)),
            strict=True,
        ):
            for name in ("input_ids", "targets", "position_ids"):
                assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))


@pytest.mark.parametrize("damage", ["missing in the middle", "cut in the middle", "missing at the end", "one too many"])
def test_shards_that_do_not_fit_are_refused(tmp_path: Path, damage: str) -> None:
    with TokenStoreWriter(tmp_path, 100, shard_tokens=10) as writer:
        writer.append(np.arange(35))
    shards = sorted(tmp_path.glob("tokens-*.bin"))
    assert [shard.stat().st_size for shard in shards] == [20, 20, 20, 10]
    match damage:
        case "missing in the middle":
            shards[1].unlink()
        case "cut in the middle":  # the total is right
            shards[1].write_bytes(shards[1].read_bytes()[:-2])
            shards[3].write_bytes(shards[3].read_bytes() + b"12")
        case "missing at the end":
            shards[3].unlink()
        case _:
            (tmp_path / "tokens-00004.bin").write_bytes(b"12")
    with pytest.raises(InputError, match="damaged"):
        TokenStore(tmp_path, EOS)


def test_training_batches_are_rows_of_the_dataset(tmp_path: Path) -> None:
    dataset = PackedDataset(write_store(tmp_path, [30, 40, 31]), 10)
    batch = training_batch(dataset, step=5, batch_size=4, seed=7)
    expected = dataset.batch(training_rows(len(dataset), 5, 4, 7))
    assert torch.equal(batch.input_ids, expected.input_ids)
    assert batch.input_ids.shape == batch.targets.shape == batch.position_ids.shape == (4, 10)
    moved = batch.to("meta")
    assert moved.targets.device.type == "meta"
    # counted before it moved: nobody can read a meta tensor, and nobody shall have to wait for a GPU
    assert moved.num_predicted_tokens == batch.num_predicted_tokens


def test_impossible_orders_and_rows_are_refused(tmp_path: Path) -> None:
    for arguments in ((0, 0, 1, 0), (1, -1, 1, 0), (1, 0, 0, 0), (1, 0, 1, -1)):
        with pytest.raises(ValueError, match="must be at least"):
            training_rows(*arguments)
    dataset = PackedDataset(write_store(tmp_path, [30]), 10)
    for row in (-1, 2):
        with pytest.raises(IndexError, match="dataset of 2 rows"):
            dataset.batch([row])
    with pytest.raises(ValueError, match="sequence_length"):
        PackedDataset(dataset.store, 0)


@pytest.mark.parametrize(("vocab_size", "width"), [(257, 2), (65_535, 2), (65_536, 4), (200_000, 4)])
def test_tokens_take_two_bytes_while_they_can(tmp_path: Path, vocab_size: int, width: int) -> None:
    ids = np.array([vocab_size - 1, 5, EOS])
    with TokenStoreWriter(tmp_path, vocab_size) as writer:
        writer.append(ids)
    store = TokenStore(tmp_path, EOS)
    assert store.tokens.dtype.itemsize == width
    assert store.tokens.tolist() == ids.tolist()
    assert (tmp_path / "tokens-00000.bin").stat().st_size == 3 * width
    assert np.load(tmp_path / "document_ends.npy").tolist() == [3]


def test_many_documents_fit_the_header_written_first(tmp_path: Path) -> None:
    store = write_store(tmp_path, [1] * 12_345)
    assert store.document_ends.tolist() == list(range(1, 12_346))
    assert store.document_ends.dtype == np.int64


def test_an_empty_store_has_no_rows(tmp_path: Path) -> None:
    store = write_store(tmp_path, [])
    assert len(store) == 0
    for keep_partial in (False, True):
        dataset = PackedDataset(store, 4, keep_partial=keep_partial)
        assert len(dataset) == dataset.num_predicted_tokens == 0
        assert list(evaluation_batches(dataset, 2)) == []
    one = write_store(tmp_path / "one", [1])  # a lone token has nothing to predict
    assert len(PackedDataset(one, 4, keep_partial=True)) == 0


def test_a_cut_store_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path, [10, 10])
    (tmp_path / "tokens-00000.bin").write_bytes(b"\0" * 39)
    with pytest.raises(InputError, match="damaged"):
        TokenStore(tmp_path, EOS)


def test_an_unfinished_store_is_not_taken_for_complete(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def write() -> None:
        with TokenStoreWriter(tmp_path, 100) as writer:
            writer.append(np.array([1, 2, EOS]))
            raise KilledError

    with pytest.raises(KilledError):
        write()
    with pytest.raises(InputError, match="damaged"):
        TokenStore(tmp_path, EOS)
