/*
 * Plans of the expert exchange by the device against those of the host, list by list; and what a
 * rank does that is lied to while ranks plan, either way.
 */
#include "tests/expert_block.h"

static lh_stream *stream;

/* Plans by the device, which is the CPU: exactly the memory that they say. */
static lh_expert *create_on_device(int64_t max_rows, int64_t max_block, int n_experts, int top_k,
                                   lh_comm *c, lh_expert_device *d)
{
    size_t bytes = lh_expert_device_bytes(&lh_kernels_cpu, max_rows, max_block, n_experts, top_k,
                                          c->rank, c->size);
    size_t totals = (size_t)c->size * (size_t)(n_experts + c->size) * sizeof(int32_t);
    lh_expert *e = NULL;

    d->k = &lh_kernels_cpu;
    CHECK_OK(lh_device_cpu.alloc(stream, &d->lists, bytes, "lists"));
    d->totals = malloc(totals);
    CHECK_OK(lh_expert_create(&e, max_rows, max_block, n_experts, top_k, c, c, d));
    return e;
}

static void destroy_on_device(lh_expert *e, lh_expert_device *d)
{
    lh_expert_destroy(e);
    lh_device_cpu.release(stream, d->lists);
    free(d->totals);
}

static lh_status plan_on_device(lh_expert *e, const part *mine, const lh_expert_plan **p)
{
    LH_TRY(lh_expert_queue_plan(e, mine->expert, mine->n, stream));
    return lh_expert_finish_plan(e, stream, p);
}

/* The same tokens dealt to the ranks in their order, the rows of a rank one segment. */
static void one_segment_each(block *b)
{
    int n[MAX_TOKENS] = {0};

    for (int t = 0; t < b->n_tokens; t++)
        n[b->rank[t]]++;
    for (int t = 0, rank = 0; t < b->n_tokens; t++) {
        while (n[rank] == 0)
            rank++;
        n[rank]--;
        b->segment[t] = b->rank[t] = rank;
    }
}

#define SAME_LIST(got, want, list, n)                                                              \
    CHECK_SAME_BITS((got)->list, (want)->list, (size_t)(n) * sizeof *(want)->list)

static void check_same_plan(const lh_expert_plan *got, const lh_expert_plan *want, int top_k)
{
    CHECK_EQ(got->n_rows, want->n_rows);
    CHECK_EQ(got->n_sent, want->n_sent);
    CHECK_EQ(got->n_received, want->n_received);
    CHECK_EQ(got->n_pairs, want->n_pairs);
    CHECK_EQ(got->tiles.n, want->tiles.n);
    SAME_LIST(got, want, tiles.start, want->tiles.n + 1);
    SAME_LIST(got, want, net, want->tiles.n);
    SAME_LIST(got, want, send_row, want->n_sent);
    SAME_LIST(got, want, source, want->n_rows * top_k);
    SAME_LIST(got, want, pair_copy, want->n_pairs);
    SAME_LIST(got, want, back_pair, want->n_pairs);
}

static void run_both_ways(int n_experts, int top_k, int without)
{
    static block b;
    static part mine;
    lh_expert_device d;
    lh_expert *host = NULL, *device;

    device = create_on_device(MAX_TOKENS, MAX_TOKENS, n_experts, top_k, comm, &d);
    CHECK_OK(lh_expert_create(&host, MAX_TOKENS, MAX_TOKENS, n_experts, top_k, comm, comm, NULL));
    for (int i = 0; i < 10; i++) {
        const lh_expert_plan *want = NULL, *got = NULL;
        int n_tokens = i == 0 ? 0 : i == 1 ? MAX_TOKENS : below(MAX_TOKENS);
        draw_block(&b, n_tokens, n_experts, top_k, (enum mode)below(N_MODES), without);
        one_segment_each(&b);
        take_part(&mine, &b);
        CHECK_OK(lh_expert_make_plan(host, mine.expert, mine.segment, mine.n, &want));
        CHECK_OK(plan_on_device(device, &mine, &got));
        if (!want || !got)
            break;
        check_same_plan(got, want, top_k);
        run_plan(device, &b, &mine, got);
    }
    lh_expert_destroy(host);
    destroy_on_device(device, &d);
}

static void test_both_ways(void)
{
    for (int i = 0; i < 60; i++) {
        int n_experts = 1 + below(below(2) ? 8 : MAX_EXPERTS);
        int top_k = 1 + below(n_experts < MAX_TOP_K ? n_experts : MAX_TOP_K);
        run_both_ways(n_experts, top_k, -1);
    }
    run_both_ways(8, 8, -1);
    for (int r = 0; comm->size > 1 && r < comm->size; r++)
        run_both_ways(12, 3, r);
}

/* All ranks see alike what is wrong; the next plan still works. */
static void test_bad_device_plans(void)
{
    static block b;
    static part mine;
    const lh_expert_plan *p = NULL;
    const int64_t segment[2] = {4, 4};
    lh_expert_device d;
    lh_expert *e = create_on_device(2, 2 * comm->size, 8, 2, comm, &d), *host = NULL;

    draw_block(&b, 2, 8, 2, UNIFORM, -1);
    one_segment_each(&b);
    take_part(&mine, &b);
    CHECK_STATUS(lh_expert_finish_plan(e, stream, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, mine.expert, segment, 0, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_queue_plan(e, mine.expert, 3, stream), LH_ERR_INVALID);
    CHECK_OK(plan_on_device(e, &mine, &p));
    CHECK_STATUS(lh_expert_finish_plan(e, stream, &p), LH_ERR_INVALID);
    run_plan(e, &b, &mine, p);
    destroy_on_device(e, &d);

    CHECK_OK(lh_expert_create(&host, 2, 2, 8, 2, comm, comm, NULL));
    CHECK_STATUS(lh_expert_queue_plan(host, mine.expert, 0, stream), LH_ERR_INVALID);
    lh_expert_destroy(host);
    if (comm->size > 1) {
        mine = (part){.n = 2, .expert = {0, 1, 2, 3}};
        e = create_on_device(2, 2, 8, 2, comm, &d);
        CHECK_STATUS(plan_on_device(e, &mine, &p), LH_ERR_INVALID);
        destroy_on_device(e, &d);
    }
}

/*
 * What arrives while ranks plan, kept to be replayed to this rank alone: a lie of another rank is a
 * byte changed in what came from it.
 */
static struct {
    lh_comm comm;
    lh_comm_ops ops;
    size_t used, at, lie; /* places in bytes; lie: the one to change */
    int keeping;
    char bytes[1 << 16];
    char foreign[1 << 16]; /* which bytes came from other ranks */
} tape;

/* Bytes that rank r sent, to or from the tape. */
static lh_status tape_take(char *to, size_t bytes, int r)
{
    for (size_t i = 0; i < bytes; i++, tape.at++) {
        LH_REQUIRE(tape.at < (tape.keeping ? sizeof tape.bytes : tape.used), LH_ERR_DISAGREE,
                   "a rank sends less");
        if (tape.keeping) {
            tape.bytes[tape.at] = to[i];
            tape.foreign[tape.at] = r != comm->rank;
        } else {
            to[i] = (char)(tape.bytes[tape.at] ^ (tape.at == tape.lie ? 1 << below(8) : 0));
        }
    }
    return LH_OK;
}

static lh_status tape_alltoallv(lh_comm *c, const void *send, const size_t *send_bytes, void *recv,
                                const size_t *recv_bytes, lh_stream *s)
{
    char *to = recv;

    if (tape.keeping)
        LH_TRY(lh_comm_alltoallv(comm, send, send_bytes, recv, recv_bytes, s));
    for (int r = 0; r < c->size; to += recv_bytes[r++])
        LH_TRY(tape_take(to, recv_bytes[r], r));
    return LH_OK;
}

static lh_status tape_allgather(lh_comm *c, const void *send, size_t bytes, void *recv,
                                lh_stream *s)
{
    if (tape.keeping)
        LH_TRY(lh_comm_allgather(comm, send, bytes, recv, s));
    for (int r = 0; r < c->size; r++)
        LH_TRY(tape_take((char *)recv + (size_t)r * bytes, bytes, r));
    return LH_OK;
}

static int all_within(const int32_t *x, int64_t n, int64_t end)
{
    for (int64_t i = 0; i < n; i++)
        if (x[i] < 0 || x[i] >= end)
            return 0;
    return 1;
}

static lh_status plan_either_way(lh_expert *e, const part *mine, int on_device,
                                 const lh_expert_plan **p)
{
    return on_device ? plan_on_device(e, mine, p)
                     : lh_expert_make_plan(e, mine->expert, mine->segment, mine->n, p);
}

/* A rank that is lied to refuses, or has a plan that reads and writes within its rows. */
static void check_lies(lh_expert *e, int on_device)
{
    static block b;
    static part mine;
    const lh_expert_plan *p;
    int refused = 0;
    uint64_t seed = check_seed; /* ranks are lied to unlike, and must go on alike */

    draw_block(&b, 40, 8, 3, UNIFORM, -1);
    if (on_device)
        one_segment_each(&b);
    take_part(&mine, &b);
    tape.keeping = 1;
    tape.at = 0;
    CHECK_OK(plan_either_way(e, &mine, on_device, &p));
    tape.keeping = 0;
    tape.used = tape.at;
    for (tape.lie = 0; tape.lie <= tape.used; tape.lie++) {
        if (tape.lie < tape.used && !tape.foreign[tape.lie])
            continue;
        tape.at = 0;
        lh_status st = plan_either_way(e, &mine, on_device, &p);
        CHECK(st == LH_OK ||
              (tape.lie < tape.used && (st == LH_ERR_DISAGREE || st == LH_ERR_INVALID)));
        refused += st != LH_OK;
        if (st == LH_OK)
            CHECK(p->tiles.start[p->tiles.n] == p->n_pairs &&
                  all_within(p->pair_copy, p->n_pairs, p->n_received) &&
                  all_within(p->back_pair, p->n_pairs, p->n_pairs) &&
                  all_within(p->net, p->tiles.n, 8));
    }
    check_seed = seed;
    CHECK((refused > 0) == (comm->size > 1));
}

static void test_lies(void)
{
    lh_expert_device d;
    lh_expert *e = NULL;

    tape.ops =
        (lh_comm_ops){.name = "tape", .alltoallv = tape_alltoallv, .allgather = tape_allgather};
    tape.comm = (lh_comm){.ops = &tape.ops, .rank = comm->rank, .size = comm->size, .layer = -1};
    CHECK_OK(lh_expert_create(&e, 40, 40, 8, 3, comm, &tape.comm, NULL));
    check_lies(e, 0);
    lh_expert_destroy(e);
    e = create_on_device(40, 40, 8, 3, &tape.comm, &d);
    check_lies(e, 1);
    destroy_on_device(e, &d);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    CHECK_OK(lh_comm_mpi_create(&comm, 30));
    if (!comm)
        return 1;
    CHECK_OK(lh_device_cpu.open(&stream, 0, 1, 1));
    RUN(test_both_ways);
    RUN(test_bad_device_plans);
    RUN(test_lies);
    lh_device_cpu.close(stream);
    lh_comm_destroy(comm);
    lh_comm_mpi_finalize();
    return check_done();
}
