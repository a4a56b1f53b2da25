/*
 * Plans of the expert exchange: 4 ranks, each with as many pairs to receive as it sends.
 */
#include "bench/cases.h"

enum { RANKS = 4, OWN = EXPERTS / RANKS, HERE = 2 /* of a token's experts, on each rank */ };

static const int32_t first[RANKS + 1] = {0, OWN, 2 * OWN, 3 * OWN, EXPERTS};

typedef struct plan_data {
    rig_buf in, total, row, source, said; /* of plan_receive: in, row, source */
    int64_t n;                            /* rows, or copies */
    void *work;
} plan_data;

static int64_t row_count(const rig *r)
{
    return r->gpu ? 32768 : 2048;
}

/* Each copy n rows of k different numbers below `below`, rising. */
static rig_buf draw_rows(rig *r, int64_t n, int k, int below)
{
    rig_buf b = rig_zeros(r, RIG_I32, n * k);
    int32_t *rows = rig_host(r, n * k, sizeof *rows);

    for (int copy = 0; copy < r->n_copies; copy++) {
        for (int64_t t = 0; t < n; t++)
            for (int i = 0, drawn = 0; drawn < k; i++)
                if (rig_uniform(r) * (below - i) < k - drawn)
                    rows[t * k + drawn++] = i;
        rig_upload(r, rig_at(b, copy), rows, (size_t)(n * k) * sizeof *rows);
    }
    return b;
}

static lh_status run_send(rig *r, void *data, int copy)
{
    plan_data *c = data;
    return r->k->plan_send(r->s, &(lh_plan_send_args){.total = rig_at(c->total, copy),
                                                      .send_row = rig_at(c->row, copy),
                                                      .source = rig_at(c->source, copy),
                                                      .pair_expert = rig_at(c->said, copy),
                                                      .expert = rig_at(c->in, copy),
                                                      .first = first,
                                                      .n_rows = c->n,
                                                      .n_experts = EXPERTS,
                                                      .top_k = TOP_K,
                                                      .size = RANKS,
                                                      .work = c->work});
}

/* Every slot's pair says its expert, and the pairs of a rank rise by row and slot. */
static int check_send(rig *r, void *data)
{
    plan_data *c = data;
    int64_t n = c->n * TOP_K;
    int32_t *expert = rig_fetch(r, c->in.p, 0, n, 4), *source = rig_fetch(r, c->source.p, 0, n, 4);
    int32_t *said = rig_fetch(r, c->said.p, 0, n, 4), next[RANKS] = {0};
    int right = 1;

    for (int64_t i = 0; i < n; i++)
        for (int rank = expert[i] / OWN + 1; rank < RANKS; rank++)
            next[rank]++;
    for (int64_t i = 0; i < n && right; i++) {
        int rank = expert[i] / OWN;
        right = source[i] == next[rank]++ && said[source[i]] / 2 == expert[i] - first[rank];
    }
    return rig_true(r, "pairs are not as sent", right);
}

static void bench_send(rig *r)
{
    plan_data c = {.n = row_count(r)};
    int64_t n = c.n * TOP_K;

    /* experts in; source and what is said of each pair, and most often four copies of a row */
    if (!rig_begin(r, "plan_send", 4.0 * (double)(3 * n + RANKS * c.n), 0,
                   "%lld rows, %d of %d experts, %d ranks", (long long)c.n, TOP_K, EXPERTS, RANKS))
        return;
    c.in = draw_rows(r, c.n, TOP_K, EXPERTS);
    c.total = rig_zeros(r, RIG_I32, EXPERTS + RANKS);
    c.row = rig_zeros(r, RIG_I32, RANKS * c.n);
    c.source = rig_zeros(r, RIG_I32, n);
    c.said = rig_zeros(r, RIG_I32, n);
    c.work = rig_work(r, r->k->plan_send_work_bytes(c.n, RANKS));
    rig_measure(r, &c, run_send, NULL, check_send);
}

static lh_status run_receive(rig *r, void *data, int copy)
{
    plan_data *c = data;
    return r->k->plan_receive(r->s, &(lh_plan_receive_args){.pair_copy = rig_at(c->row, copy),
                                                            .back_pair = rig_at(c->source, copy),
                                                            .pair_expert = rig_at(c->in, copy),
                                                            .n_pairs = c->n * HERE,
                                                            .n_copies = c->n,
                                                            .n_nets = OWN,
                                                            .work = c->work});
}

/* Pairs of an expert come after those of the one before, in the order received. */
static int check_receive(rig *r, void *data)
{
    plan_data *c = data;
    int64_t n = c->n * HERE;
    int32_t *said = rig_fetch(r, c->in.p, 0, n, 4), *back = rig_fetch(r, c->source.p, 0, n, 4);
    int32_t *copy = rig_fetch(r, c->row.p, 0, n, 4), next[OWN] = {0};
    int right = 1;

    for (int64_t i = 0; i < n; i++)
        for (int e = said[i] / 2 + 1; e < OWN; e++)
            next[e]++;
    for (int64_t i = 0; i < n && right; i++)
        right = back[i] == next[said[i] / 2]++ && copy[back[i]] == i / HERE;
    return rig_true(r, "pairs are not in order", right);
}

static void bench_receive(rig *r)
{
    plan_data c = {.n = row_count(r) * RANKS};
    int64_t n = c.n * HERE;

    if (!rig_begin(r, "plan_receive", 4.0 * (double)(3 * n), 0, "%lld pairs, %d experts",
                   (long long)n, OWN))
        return;
    c.in = draw_rows(r, c.n, HERE, OWN);
    c.row = rig_zeros(r, RIG_I32, n);
    c.source = rig_zeros(r, RIG_I32, n);
    c.work = rig_work(r, r->k->plan_receive_work_bytes(n, OWN));
    int32_t *said = rig_host(r, n, sizeof *said);
    for (int copy = 0; copy < r->n_copies; copy++) { /* numbers become what is said of them */
        rig_must(r->dev->download(r->s, said, rig_at(c.in, copy), (size_t)n * sizeof *said));
        rig_must(r->dev->sync(r->s));
        for (int64_t i = 0; i < n; i++)
            said[i] = 2 * said[i] + (i % HERE == 0);
        rig_upload(r, rig_at(c.in, copy), said, (size_t)n * sizeof *said);
    }
    rig_measure(r, &c, run_receive, NULL, check_receive);
}

void cases_plan(rig *r)
{
    bench_send(r);
    bench_receive(r);
}
