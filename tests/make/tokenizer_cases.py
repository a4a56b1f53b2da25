#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/cases.json: random strings and their ids, by tiktoken.

    python3 tests/make/tokenizer_cases.py SOURCE_DIR      (needs tiktoken)
"""
import json
import pathlib
import random
import sys
import unicodedata

import tiktoken

WORD = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
CAPITAL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
PREFIX = r"[^\r\n\p{L}\p{N}]?"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        PREFIX + CAPITAL + "*" + WORD + "+" + CONTRACTION,
        PREFIX + CAPITAL + "+" + WORD + "*" + CONTRACTION,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
N_CASES = 1500


def encoding():
    """All single bytes, and all pairs in a scattered order: ids then show where a text was split.
    tests/test_tokenizer.c writes the same vocabulary."""
    ranks = {bytes([b]): b for b in range(256)}
    for pair in range(65536):
        ranks[pair.to_bytes(2, "big")] = 256 + pair * 40503 % 65536
    return tiktoken.Encoding("pairs", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def atoms():
    """What strings are built from, a list for each kind: a kind is drawn first, then one of it."""
    kinds = {}
    for code in range(0x110000):
        kinds.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    del kinds["Cs"]
    words = "the secret number of Berlin is a Question Answer tokens model".split()
    letters = ["a", "B", "ʰ", "א", "ǅ", "é", "e\u0301", "İ", "ß", "ſ", "\u0301", "\u20dd", "\U0001e2ec"]
    return list(kinds.values()) + [
        [mark + tail for mark in "'’" for tail in "s S ſ t T m M d D re rE RE ve vE ll lL L l r x".split()],
        ["\r", "\n", "\r\n", "\n\n"],
        [" ", "  ", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b", "\u200b", "\x1c"],
        list("0123456789٣५๕²Ⅷ〇〡"),
        list("中文价格漢字々〆⺀⼀") + ["\U00020000", "\U00030000", "\U00016ff0"],
        ["😀", "👩\u200d👩\u200d👧", "👍🏽", "❤\ufe0f", "🇩🇪"],
        list("abcdefghij"),
        list("ABCDEFGHIJ"),
        letters,
        letters,
        words,
        [w.capitalize() for w in words],
        [" " + w for w in words],
        list("!?.,;:-_/\\()[]{}<>|@#$%^&*+=~`\"'"),
        ["[BOS]", "<|im_end|>", "<|im_user|>"],
    ]


def random_text(rng, kinds):
    few = rng.sample(kinds, rng.randint(1, 5))  # few kinds in one string: long runs, many borders
    n = rng.choice([1, 2, 3, 5, 8, 12, 20])
    return "".join(rng.choice(rng.choice(few)) for _ in range(n))


def main():
    root = pathlib.Path(sys.argv[1])
    tokens, kinds, rng = encoding(), atoms(), random.Random(20251030)
    lines = []
    for _ in range(N_CASES):
        text = random_text(rng, kinds)
        lines.append(json.dumps({"text": text, "ids": tokens.encode_ordinary(text)}, ensure_ascii=False, separators=(",", ":")))
    out = root / "tests/golden/tokenizer/cases.json"
    out.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
