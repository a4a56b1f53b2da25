#include "parallel/shard.h"

#include "base/mem.h"
#include "base/status.h"

lh_range lh_split(int64_t n, int rank, int size)
{
    int64_t each = n / size, larger = n % size;
    int64_t begin = each * rank + lh_min64(rank, larger);

    return (lh_range){begin, begin + each + (rank < larger)};
}

int lh_split_owner(int64_t n, int64_t i, int size)
{
    int64_t each = n / size, larger = n % size;
    int64_t in_larger = larger * (each + 1);

    LH_ASSERT(i >= 0 && i < n);
    return (int)(i < in_larger ? i / (each + 1) : larger + (i - in_larger) / each);
}

/* The next `n` segments of the block belong to `rank`; the last one of the turn may be ragged. */
static void add_run(lh_run *runs, int *n_runs, int rank, int64_t n, int64_t segment, int64_t end)
{
    lh_run *run = &runs[*n_runs];
    int64_t token = *n_runs > 0 ? run[-1].token + run[-1].n_tokens : run->token;

    if (n == 0)
        return;
    *run = (lh_run){.rank = rank,
                    .token = token,
                    .n_tokens = lh_min64(n * segment, end - token),
                    .segment = token / segment,
                    .n_segments = (int)n};
    ++*n_runs;
}

int lh_block_runs(lh_run *runs, int64_t begin, int64_t end, int64_t segment, int size)
{
    int64_t n = (end - begin + segment - 1) / segment;
    int n_runs = 0;

    LH_ASSERT(segment > 0 && begin >= 0 && begin % segment == 0 && end >= begin);
    runs[0].token = begin;
    if (size == 1) {
        add_run(runs, &n_runs, 0, n, segment, end);
        return n_runs;
    }
    for (int r = 0; r < size; r++) {
        lh_range own = lh_split(n, r, size);
        add_run(runs, &n_runs, r, (own.end - own.begin + 1) / 2, segment, end);
    }
    for (int r = size - 1; r >= 0; r--) {
        lh_range own = lh_split(n, r, size);
        add_run(runs, &n_runs, r, (own.end - own.begin) / 2, segment, end);
    }
    return n_runs;
}
