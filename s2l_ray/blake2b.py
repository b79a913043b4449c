"""BLAKE2b of many short texts at once, for keys of examples; `hashlib` hashes one at a time.

Compiled by numba. Texts are hashed together, eight of them in the lanes of a register of 512 bits,
so that a key takes a twentieth of the time.

Shape letters: N texts, L lanes, W = 16 words of a block.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np

from s2l_ray.compilation import cached_njit

BLOCK_BYTES = 128
"""Texts up to this length are one block."""
_LANES = 64
_ROUNDS = 12

_IV = np.array(
    [
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    ],
    np.uint64,
)
_SIGMA = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ]
)
_COLUMNS_THEN_DIAGONALS = np.array(
    [
        [0, 4, 8, 12],
        [1, 5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
        [0, 5, 10, 15],
        [1, 6, 11, 12],
        [2, 7, 8, 13],
        [3, 4, 9, 14],
    ]
)


def parameters(size: int, person: bytes = b"") -> np.ndarray:
    """Return the parameters of digests of `size` bytes, without a key or a tree: uint64 (8,)."""
    first = bytes([size, 0, 1, 1])
    return np.frombuffer(first.ljust(48, b"\0") + person.ljust(16, b"\0"), np.uint64)


@cached_njit
def digests(text_B, start_N, digest_N, parameter_8):
    """Fill `digest_N`, uint64, with the first 8 bytes of BLAKE2b, little-endian.

    Texts are of one block.

    Args:
        text_B: uint8, the texts, one after the other.
        start_N: integer (N + 1,), where each begins, and where the last one ends. A text of more
            than BLOCK_BYTES gets a digest that means nothing.
        parameter_8: from `parameters`.

    Source:
        Saarinen and Aumasson (2015), RFC 7693.
    """
    message_WL = np.empty((16, _LANES), np.uint64)
    state_WL = np.empty((16, _LANES), np.uint64)
    for first in range(0, len(digest_N), _LANES):
        num_lanes = min(_LANES, len(digest_N) - first)
        message_WL[:] = 0
        for lane in range(_LANES):
            for word in range(8):
                state_WL[word, lane] = _IV[word] ^ parameter_8[word]
                state_WL[8 + word, lane] = _IV[word]
            state_WL[14, lane] = ~state_WL[14, lane]  # the only block is the last one
        for lane in range(num_lanes):
            start = start_N[first + lane]
            length = min(start_N[first + lane + 1] - start, BLOCK_BYTES)
            state_WL[12, lane] ^= np.uint64(length)
            for byte in range(length):
                shift = np.uint64(8 * (byte % 8))
                message_WL[byte // 8, lane] |= np.uint64(text_B[start + byte]) << shift
        _rounds(state_WL, message_WL)
        for lane in range(num_lanes):
            mixed = state_WL[0, lane] ^ state_WL[8, lane]
            digest_N[first + lane] = _IV[0] ^ parameter_8[0] ^ mixed


@cached_njit
def _rounds(state_WL, message_WL):
    for number in range(_ROUNDS):
        for place in range(8):
            a, b, c, d = _COLUMNS_THEN_DIAGONALS[place]
            x = _SIGMA[number % 10, 2 * place]
            y = _SIGMA[number % 10, 2 * place + 1]
            for lane in range(_LANES):
                va, vb, vc, vd = (
                    state_WL[a, lane],
                    state_WL[b, lane],
                    state_WL[c, lane],
                    state_WL[d, lane],
                )
                va += vb + message_WL[x, lane]
                vd = _rotated(vd ^ va, 32)
                vc += vd
                vb = _rotated(vb ^ vc, 24)
                va += vb + message_WL[y, lane]
                vd = _rotated(vd ^ va, 16)
                vc += vd
                vb = _rotated(vb ^ vc, 63)
                state_WL[a, lane] = va
                state_WL[b, lane] = vb
                state_WL[c, lane] = vc
                state_WL[d, lane] = vd


@cached_njit
def _rotated(word, by):
    return (word >> np.uint64(by)) | (word << np.uint64(64 - by))
