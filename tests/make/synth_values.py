#!/usr/bin/env python3
"""Elements of synthetic weights, written down a second time: prints the table of tests/test_synth.c.

    tests/make/synth_values.py
"""
import struct

MASK = (1 << 64) - 1


def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def key(seed, name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return mix(h ^ mix((seed + 0x9E3779B97F4A7C15) & MASK))


def f32(x):
    """Rounds to f32. Products of two f32 are exact in Python's numbers."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def f32_bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def element(seed, name, index, flat, offset, scale):
    bits = mix((key(seed, name) + (index + 1) * 0x9E3779B97F4A7C15) & MASK)
    if flat:
        whole = bits >> 44
    else:
        whole = sum(bits >> 16 * i & 0xFFFF for i in range(4)) - 131070
    return f32((offset + whole) * f32(scale))


def bf16_bits(x):
    bits = f32_bits(x)
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


CASES = [
    (0, "model.embed_tokens.weight", 0, 0, 0, 2.0**-15),
    (0, "model.embed_tokens.weight", 1, 0, 0, 2.0**-15),
    (1, "model.embed_tokens.weight", 1, 0, 0, 2.0**-15),
    (7, "lm_head.weight", 377487359, 0, 0, 5.5e-7),
    (2**64 - 1, "model.layers.26.block_sparse_moe.experts.255.w2.weight", 2**33 + 5, 0, 605396, 1.65e-6),
    (3, "model.layers.0.self_attn.A_log", 31, 1, 0, 2.6441e-6),
    (3, "model.layers.0.self_attn.dt_bias", 4095, 1, -1555895, 4.43944e-6),
]

for seed, name, index, flat, offset, scale in CASES:
    value = element(seed, name, index, flat, offset, scale)
    print(f'    {{{seed}u, "{name}", {index}u, {flat}, {offset}, {scale!r}f, '
          f"0x{f32_bits(value):08x}, 0x{bf16_bits(value):04x}}},")
