"""Writes formats.bin: random rows of every GGUF type and what they mean, by the `gguf` package (run with gguf 0.19.0, numpy 2.4.6).

For each type, in the order of TYPES: 2 rows of 256 elements as bytes, then as little-endian f32.
Types that the package quantises come from its quantiser; the others are random bytes with scales of a plausible size.
"""

import pathlib

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL]
# Where f16 scales and mins stand in a block.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0],
}
ROWS, COLS = 2, 256

random = np.random.default_rng(3)
out = b""
for kind in TYPES:
    length, size = GGML_QUANT_SIZES[kind]
    if kind in HALVES:
        blocks = random.integers(0, 256, (ROWS * COLS // length, size), dtype=np.uint8)
        for at in HALVES[kind]:
            halves = random.uniform(-0.01, 0.01, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    else:
        values = random.uniform(-1, 1, ROWS * COLS).astype(np.float32)
        if kind == T.F16:
            values = values.astype(np.float16)
        bytes_ = values.view(np.uint8).reshape(-1, values.itemsize)
        blocks = bytes_[:, 2:] if kind == T.BF16 else bytes_
    blocks = np.ascontiguousarray(blocks)
    row = blocks.reshape(ROWS, -1)
    if kind == T.F32:
        expected = values.reshape(ROWS, COLS)
    elif kind == T.F16:
        expected = values.astype(np.float32).reshape(ROWS, COLS)
    else:
        expected = dequantize(row, kind).astype(np.float32)
    assert expected.shape == (ROWS, COLS), (kind, expected.shape)
    out += row.tobytes() + expected.astype("<f4").tobytes()

pathlib.Path(__file__).with_name("formats.bin").write_bytes(out)
