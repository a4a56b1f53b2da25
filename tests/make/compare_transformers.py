#!/usr/bin/env python3
"""A checkpoint's logits by longhaul beside transformers' (PyTorch, transformers with kimi_linear).

    tests/make/compare_transformers.py LONGHAUL MODEL_DIR [--backend cuda] [--device cuda]
        [--prompts 4] [--tokens 512] [--last 64] [--greedy 16]

Prompts are random tokens. What is compared with transformers in f32: longhaul, and transformers in
bf16 (with A_log, dt_bias and the router's bias as the file has them, which a bf16 load rounds).
Longhaul's greedy tokens are fed to transformers: each must be its choice, too, or nearly tie with it,
by less than four times the error of the logits in bf16 (root mean square). Ends with 1 where longhaul's error is more than
twice transformers' own.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

KEPT = ("A_log", "dt_bias", "e_score_correction_bias")


def load(model_dir, dtype, device):
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=dtype, attn_implementation="eager").to(device).eval()
    if dtype == torch.float32:
        return model
    in_file = {}
    for path in sorted(Path(model_dir).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            in_file.update({n: file.get_tensor(n) for n in file.keys() if n.endswith(KEPT)})
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    reset = 0
    for name, value in in_file.items():
        tail = name.split(".layers.")[1]  # the layer's number and the rest: module names may differ
        layer, kind = tail.split(".")[0], tail.split(".")[-1]
        for other, tensor in tensors.items():
            if f".layers.{layer}." in other and other.endswith(kind):
                tensor.data = value.float().view(tensor.shape).to(device)
                reset += 1
    assert reset == len(in_file), f"{reset} of {len(in_file)} tensors found in the model"
    return model


def by_longhaul(args, ids, greedy):
    with tempfile.TemporaryDirectory() as work:
        tokens, out = Path(work, "tokens.json"), Path(work, "out.safetensors")
        tokens.write_text(json.dumps(ids))
        subprocess.run(
            [args.longhaul, "logits", "--model", args.model, "--backend", args.backend,
             "--tokens", tokens, "--last", str(args.last), "--greedy", str(greedy), "--out", out,
             "--quiet"], check=True, stdout=subprocess.DEVNULL)
        with safe_open(out, "pt") as file:
            return file.get_tensor("logits").double(), file.get_tensor("greedy").tolist()


def by_transformers(model, ids, last):
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0, -last:].double().cpu()


def errors(got, want):
    off, size = got - want, want.pow(2).mean().sqrt().item()
    rms = off.pow(2).mean().sqrt().item()
    p, q = want.log_softmax(-1), got.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return {"rms": rms, "share": rms / size, "max": off.abs().max().item(),
            "kl": kl.mean().item(), "kl_max": kl.max().item()}


def show(name, e):
    print(f"{name:24} off by {e['share']:.2e} of the logits' rms, at most by {e['max']:.2e}; "
          f"KL mean {e['kl']:.2e} worst {e['kl_max']:.2e}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("longhaul")
    parser.add_argument("model")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--last", type=int, default=64)
    parser.add_argument("--greedy", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    vocab = json.loads(Path(args.model, "config.json").read_text())["vocab_size"]
    draw = random.Random(args.seed)
    prompts = [[draw.randrange(vocab) for _ in range(args.tokens - i)]  # ragged lengths
               for i in range(args.prompts)]

    ours = [by_longhaul(args, ids, args.greedy) for ids in prompts]
    torch.backends.cuda.matmul.allow_tf32 = False
    f32 = load(args.model, torch.float32, args.device)
    # one pass over prompt and greedy tokens gives the prompt's logits and those of every choice
    exact = [by_transformers(f32, ids + tokens, args.last + args.greedy)
             for ids, (_, tokens) in zip(prompts, ours)]
    del f32
    bf16 = load(args.model, torch.bfloat16, args.device)
    rounded = [by_transformers(bf16, ids, args.last) for ids in prompts]

    want = torch.cat([e[:args.last] for e in exact])
    mine = errors(torch.cat([logits for logits, _ in ours]), want)
    theirs = errors(torch.cat(rounded), want)
    show(f"longhaul ({args.backend})", mine)
    show("transformers bf16", theirs)

    same = near = wrong = 0
    tie = 4 * theirs["rms"]
    for logits, (_, tokens) in zip(exact, ours):
        for row, token in zip(logits[args.last - 1:], tokens):
            gap = (row.max() - row[token]).item()
            same += gap == 0
            near += 0 < gap <= tie
            wrong += gap > tie
    print(f"greedy tokens: {same} are transformers' choice in f32, {near} nearly tie with it "
          f"(gap at most {tie:.2e}), {wrong} differ")
    ok = wrong == 0 and mine["rms"] <= 2 * theirs["rms"]
    print("PASSED" if ok else "FAILED")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
