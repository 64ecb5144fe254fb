"""A shuffled order of any number of rows that takes no memory: entry i is computed, not looked up."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

_ROUNDS = 12

# The finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def permute(indices: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Entries `indices` of the permutation of 0 .. size-1 that belongs to (seed, epoch).

    A Feistel network of 12 rounds permutes the numbers of b bits, b the least (but 2) with 2^b >= size; in turn, one
    half is XORed with a keyed hash of the other, which is its own inverse whatever the hash. A result of `size` or more
    is permuted again until it is less ("cycle walking", Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains"), which is less than twice on average. The keys are BLAKE2b of (seed, epoch, round).

    Only integer arithmetic that is exact everywhere is used, so the order is the same on every machine, for ever.

    Args:
        indices: Integers in 0 .. size-1, any shape.
        size: At least 1, at most 2^62.
        seed: Any integer.
        epoch: Any integer.

    Returns:
        int64, in the shape of `indices`.
    """
    bits = max(2, (size - 1).bit_length())
    result = np.array(indices, dtype=np.uint64)
    flat = result.reshape(-1)
    keys = _keys(seed, epoch)
    outside = np.arange(flat.size)
    while outside.size:
        flat[outside] = _encrypt(flat[outside], bits, keys)
        outside = outside[flat[outside] >= size]
    return result.astype(np.int64)


def _encrypt(values: np.ndarray, bits: int, keys: tuple[np.uint64, ...]) -> np.ndarray:
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << (np.uint64(bits) - low_bits)) - np.uint64(1)
    low, high = values & low_mask, values >> low_bits
    for number, key in enumerate(keys):
        if number % 2:
            high = high ^ (_mix(low ^ key) & high_mask)
        else:
            low = low ^ (_mix(high ^ key) & low_mask)
    return (high << low_bits) | low


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> _SHIFTS[0])) * _MULTIPLIERS[0]  # modulo 2^64
    values = (values ^ (values >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return values ^ (values >> _SHIFTS[2])


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    digests = (hashlib.blake2b(f"{seed},{epoch},{number}".encode(), digest_size=8) for number in range(_ROUNDS))
    return tuple(np.uint64(int.from_bytes(digest.digest(), "big")) for digest in digests)
