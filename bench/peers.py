#!/usr/bin/env python3
"""The operations of bench_kernels by other libraries, on the same GPU: run it right before or after.

    python3 bench/peers.py [PART OF A NAME] > peers.csv

Rows are those of `bench_kernels --csv`: the same operations, sizes, bytes and floating-point
operations; the library's name and version stand in place of the commit. Shares are of the ceilings
that this program measures itself: a copy of 1 GiB, read and written, and torch's product of 8,192
cubed. Times are medians of 9 by events of CUDA, of many calls recorded as a graph where the
library lets itself be recorded. Data are random; copies of them are taken in turn, together larger
than the last cache. Results are not checked here. Needs torch with CUDA; fla if it is installed.
"""
import datetime
import functools
import math
import statistics
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CACHE = 256 << 20
D_MODEL, HEADS, D_HEAD, D_ROPE, D_LATENT, D_EXPERT = 2304, 32, 128, 64, 512, 1024
D_QK = D_HEAD + D_ROPE
TORCH = f"torch {torch.__version__}"
CUDNN = f"{TORCH} cuDNN {torch.backends.cudnn.version()}"
ceilings = {"bytes": math.inf, "flops": math.inf}


@functools.cache
def driver():
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def normal(*shape, sd=1.0, dtype=torch.bfloat16):
    return torch.randn(shape, device="cuda", dtype=dtype).mul_(sd)


def elapsed_ms(run):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def median_ms(call, copies, record):
    """Of one call(*data); `copies` is the list of data that calls take in turn."""
    for data in copies[:3]:  # compiles, chooses algorithms
        call(*data)
    n = min(1024, math.ceil(20 / max(elapsed_ms(lambda: call(*copies[0])), 1e-3)))
    n = math.ceil(n / len(copies)) * len(copies)

    def batch():
        for i in range(n):
            call(*copies[i % len(copies)])

    run = batch
    try:
        if record:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                batch()
            run = graph.replay
    except RuntimeError as e:
        print(f"not recorded: {e}".splitlines()[0], file=sys.stderr)
    run()
    return statistics.median(elapsed_ms(run) for _ in range(9)) / n


def case(op, size, library, moved, flops, make, call, record=True):
    """`moved` bytes and `flops` of one call, as in bench_kernels; make() gives one copy of the data."""
    if len(sys.argv) > 1 and op != "ceiling" and sys.argv[1] not in f"{op}, {size}":
        return None
    try:
        with torch.no_grad():
            ms = median_ms(call, [make() for _ in range(1 + int(CACHE / moved))], record)
    except Exception as e:  # a library that lacks the operation must not end the others' rows
        print(f"{op}, {size}: {library}: {type(e).__name__}: {e}".splitlines()[0], file=sys.stderr)
        return None
    finally:
        torch.cuda.empty_cache()
    of_products = flops / ceilings["flops"] > moved / ceilings["bytes"]
    if of_products or (flops and ceilings["flops"] == math.inf):
        rate, top, unit = flops / ms / 1e9, ceilings["flops"] / 1e12, "TFLOP/s"
    else:
        rate, top, unit = moved / ms / 1e6, ceilings["bytes"] / 1e9, "GB/s"
    share = 1.0 if top == math.inf else rate / top
    print(f'{datetime.date.today()},{library},{torch.cuda.get_device_name()},{driver()},{op},"{size}",'
          f"{ms:.6f},{rate:.2f},{unit},{share:.4f}", flush=True)
    return ms


def measure_ceilings():
    gib, n = 1 << 30, 8192
    copy = case("ceiling", "copy of 1 GiB", TORCH, 2 * gib, 0,
                lambda: (normal(gib // 2), torch.empty(gib // 2, device="cuda", dtype=torch.bfloat16)),
                lambda a, b: b.copy_(a), record=False)  # in a recording a copy takes another, slower way
    product = case("ceiling", "product 8192^3, bf16", TORCH, 6 * n * n, 2 * n**3,
                   lambda: (normal(n, n), normal(n, n, sd=n**-0.5)), F.linear)
    if not copy or not product:
        sys.exit("peers.py: no ceilings, so no shares")
    ceilings["bytes"], ceilings["flops"] = 2 * gib / copy * 1e3, 2 * n**3 / product * 1e3


def rows_and_products():
    n = 32768
    case("rmsnorm", f"{n} rows of {D_MODEL}", TORCH, 4 * n * D_MODEL, 0, lambda: (normal(n, D_MODEL), normal(D_MODEL)),
         lambda x, w: F.rms_norm(x, (D_MODEL,), w, 1e-5))
    for n_in, n_out in (D_MODEL, 4096), (4096, D_MODEL), (D_MODEL, 12288):
        for n in 1, 8, 64, 2048, 32768:
            rows = "1 row" if n == 1 else "8 rows, a tile each" if n == 8 else f"{n} rows"
            case("linear", f"{n_in} -> {n_out}, {rows}", TORCH, 2 * (n_in * n_out + n * (n_in + n_out)),
                 2 * n * n_in * n_out, lambda: (normal(n, n_in), normal(n_out, n_in, sd=n_in**-0.5)), F.linear)


def experts():
    nets = 64
    offsets = {rows: torch.arange(1, nets + 1, device="cuda", dtype=torch.int32) * rows for rows in (2048, 512, 64, 8)}

    def make(rows):
        w = [normal(nets, n_out, n_in, sd=n_in**-0.5).transpose(1, 2)
             for n_out, n_in in ((D_EXPERT, D_MODEL), (D_EXPERT, D_MODEL), (D_MODEL, D_EXPERT))]
        return normal(nets * rows, D_MODEL), *w, offsets[rows]

    def ffn(x, gate, up, down, ends):
        hidden = F.silu(torch._grouped_mm(x, gate, offs=ends)) * torch._grouped_mm(x, up, offs=ends)
        return torch._grouped_mm(hidden, down, offs=ends)

    for rows in offsets:
        weights = 3 * D_MODEL * D_EXPERT
        case("ffn", f"{nets} networks x {rows} rows of {D_MODEL}x{D_EXPERT}", f"{TORCH} _grouped_mm",
             2 * weights * nets + 4 * nets * rows * D_MODEL, 2 * weights * nets * rows, lambda: make(rows), ffn)


def kda():
    try:
        import fla
        from fla.ops.kda import chunk_kda, fused_recurrent_kda
    except ImportError as e:
        print(f"no rows of fla: {e}", file=sys.stderr)
        return
    library = f"fla {getattr(fla, '__version__', '')}"

    def make(batch, n):
        shape = (batch, n, HEADS, D_HEAD)
        q, k = (F.normalize(normal(*shape, dtype=torch.float32), dim=-1).bfloat16() for _ in range(2))
        g = -torch.rand(shape, device="cuda").mul_(0.12).add_(0.009)
        beta = torch.rand(shape[:3], device="cuda")
        return q, k, normal(*shape), g, beta, normal(batch, HEADS, D_HEAD, D_HEAD, sd=0.1, dtype=torch.float32)

    def by(function):
        return lambda q, k, v, g, beta, state: function(q=q, k=k, v=v, g=g, beta=beta, initial_state=state,
                                                        output_final_state=True)

    vectors = D_HEAD * (4 * 2 + 4) + 4  # bytes of q, k, v, o (bf16), g and beta (f32) of a token and head
    state = 8 * D_HEAD * D_HEAD  # read and written
    chunk = 5 * 64**2 * D_HEAD + 64**3 / 3 + 6 * 64 * D_HEAD**2
    for n in 8192, 65536:
        case("kda_prefill", f"{n} tokens, {HEADS} heads", f"{library} chunk_kda", HEADS * (n * vectors + state),
             HEADS * n / 64 * chunk, lambda: make(1, n), by(chunk_kda))
    for n, text in (1, "1 sequence"), (256, "256 sequences"):
        case("kda_step", f"{text}, {HEADS} heads", f"{library} fused_recurrent_kda", n * HEADS * (vectors + state),
             7 * n * HEADS * D_HEAD**2, lambda: make(n, 1), by(fused_recurrent_kda))


def attention():
    """Prefill by cuDNN over keys and values that are expanded already: our time has the expansion."""

    def make(n, n_keys):
        return normal(1, HEADS, n, D_QK), normal(1, HEADS, n_keys, D_QK), normal(1, HEADS, n_keys, D_HEAD)

    def attend(causal):
        def call(q, k, v):
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return call

    for n, position in (8192, 122880), (32768, 0):
        # torch's causal mask begins at the first key: queries far behind take as many pairs without one
        n_keys = n if position == 0 else position + n // 2
        moved = 2 * (n * HEADS * (D_QK + D_HEAD) + (position + n) * (D_LATENT + D_ROPE) + HEADS * 256 * D_LATENT)
        pairs = HEADS * n * (position + (n + 1) / 2)
        case("mla_prefill", f"{n} queries at {position}", CUDNN, moved, 2 * pairs * (D_QK + D_HEAD),
             lambda: make(n, n_keys), attend(position == 0))


def absorbed_decode():
    """torch has no attention of this shape: two products and a softmax, so the cache is read twice.
    The products with W_kvb, which our time has, are left out."""
    width = D_LATENT + D_ROPE

    def decode(q, cache):
        p = torch.softmax(torch.matmul(q, cache.transpose(1, 2)).float() * D_QK**-0.5, -1)
        return torch.matmul(p.bfloat16(), cache[:, :, :D_LATENT])

    for n, n_keys in (1, 131072), (1, 1048576), (64, 4096):
        moved = 2 * (n * n_keys * width + n * HEADS * (D_QK + D_HEAD) + HEADS * 256 * D_LATENT)
        case("mla_decode", f"{n} sequence{'' if n == 1 else 's'} of {n_keys}", f"{TORCH} matmul softmax matmul", moved,
             2 * n * n_keys * HEADS * (width + D_LATENT), lambda: (normal(n, HEADS, width), normal(n, n_keys, width)),
             decode)


def main():
    if not torch.cuda.is_available():
        sys.exit("peers.py: torch sees no GPU")
    print("date,commit,machine,driver,operation,size,ms,rate,unit,share")
    measure_ceilings()
    rows_and_products()
    experts()
    kda()
    attention()
    absorbed_decode()


if __name__ == "__main__":
    main()
