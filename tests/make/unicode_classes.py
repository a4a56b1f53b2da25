#!/usr/bin/env python3
"""Makes runtime/unicode_class.c and tests/golden/tokenizer/classes.json.

    python3 tests/make/unicode_classes.py SOURCE_DIR      (needs tiktoken)

The classes are those that tiktoken's own regex engine shows, asked for every code point: other
Unicode libraries know other versions of Unicode.
"""
import json
import pathlib
import sys

import tiktoken

# The bits of runtime/unicode_class.h, and the patterns of the split that they stand for.
CLASSES = [
    (0x01, r"\p{Han}"),
    (0x02, r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"),
    (0x04, r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"),
    (0x08, r"[^\s\p{L}\p{N}]"),
    (0x10, r"\p{N}"),
    (0x20, r"\s"),
    (0x40, r"[\r\n]"),
    (0x80, r"[^\r\n\p{L}\p{N}]"),
]
# One character that each version was the first to have, in a class: newest first.
VERSIONS = [("17.0", "\U00016ea0"), ("16.0", "\u1c89"), ("15.1", "\U0002ebf0"), ("15.0", "\U000323af"), ("14.0", "\u08c8")]
N_CODE_POINTS = 0x110000


def matching(pattern, text):
    """The characters of the text that the pattern matches: tiktoken leaves out all others."""
    bytes_only = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=bytes_only, special_tokens={})
    return encoding.decode(encoding.encode_ordinary(text))


def rows(words, per_row):
    return "\n".join("    " + " ".join(words[i : i + per_row]) for i in range(0, len(words), per_row))


def main():
    root = pathlib.Path(sys.argv[1])
    every = "".join(chr(c) for c in range(N_CODE_POINTS) if not 0xD800 <= c < 0xE000)
    classes = bytearray(N_CODE_POINTS)
    for bit, pattern in CLASSES:
        for ch in matching(pattern, every):
            classes[ord(ch)] |= bit
    version = next(v for v, ch in VERSIONS if matching(r"\p{L}", ch))

    ranges = [c for c in range(N_CODE_POINTS) if c == 0 or classes[c] != classes[c - 1]]
    runs = rows([f"0x{c << 8 | classes[c]:08x}," for c in ranges], 8)
    ascii_classes = rows([f"0x{c:02x}," for c in classes[:128]], 16)
    (root / "runtime/unicode_class.c").write_text(
        f"""/* Made by tests/make/unicode_classes.py: Unicode {version}, as tiktoken {tiktoken.__version__} knows it. */
#include "runtime/unicode_class.h"

/* clang-format off */
const uint8_t lh_unicode_ascii[128] = {{
{ascii_classes}
}};

/* Runs of code points of one class: the first code point << 8 | class. */
const uint32_t lh_unicode_runs[] = {{
{runs}
}};
/* clang-format on */
const size_t lh_unicode_n_runs = sizeof lh_unicode_runs / sizeof *lh_unicode_runs;
"""
    )

    digest = 0xCBF29CE484222325
    for c in classes:
        digest = (digest ^ c) * 0x100000001B3 % 2**64
    golden = {"unicode": version, "fnv1a64": f"{digest:016x}", "count": {p: sum(c & b != 0 for c in classes) for b, p in CLASSES}}
    (root / "tests/golden/tokenizer/classes.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
