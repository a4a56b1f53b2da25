/*
 * The expert exchange with plans of the host: random blocks with segments of any length on any
 * rank.
 */
#include "tests/expert_block.h"

static void run_block(lh_expert *e, const block *b)
{
    static part mine;
    const lh_expert_plan *p = NULL;

    take_part(&mine, b);
    CHECK_OK(lh_expert_make_plan(e, mine.expert, mine.segment, mine.n, &p));
    if (p)
        run_plan(e, b, &mine, p);
}

/* One lh_expert serves several blocks, as in a prefill; its room is exactly what the worst needs.
 */
static void run_blocks(int n_experts, int top_k, int n_blocks, int without)
{
    static block b;
    lh_expert *e = NULL;

    CHECK_OK(lh_expert_create(&e, MAX_TOKENS, MAX_TOKENS, n_experts, top_k, comm, comm, NULL));
    if (!e)
        return;
    for (int i = 0; i < n_blocks; i++) {
        int n_tokens = below(8) == 0 ? MAX_TOKENS : below(below(2) ? 8 : MAX_TOKENS);
        draw_block(&b, n_tokens, n_experts, top_k, (enum mode)below(N_MODES), without);
        run_block(e, &b);
    }
    lh_expert_destroy(e);
}

static void test_random_routings(void)
{
    for (int i = 0; i < 170; i++) {
        int n_experts = 1 + below(below(2) ? 8 : MAX_EXPERTS);
        int top_k = 1 + below(n_experts < MAX_TOP_K ? n_experts : MAX_TOP_K);
        run_blocks(n_experts, top_k, 10, -1);
    }
}

static void test_a_rank_without_tokens(void)
{
    for (int r = 0; comm->size > 1 && r < comm->size; r++)
        run_blocks(8, 2, 3, r);
}

static void test_more_ranks_than_experts(void)
{
    run_blocks(1, 1, 5, -1);
    run_blocks(2, 2, 5, -1);
    run_blocks(3, 1, 5, -1);
}

static void test_top_k(void)
{
    run_blocks(MAX_EXPERTS, 1, 5, -1);
    run_blocks(MAX_EXPERTS, 8, 5, -1);
    run_blocks(8, 8, 5, -1); /* all tokens to all experts: every array is full */
}

static void test_no_tokens(void)
{
    static block b;
    lh_expert *e = NULL;

    CHECK_OK(lh_expert_create(&e, 0, 0, 8, 2, comm, comm, NULL));
    draw_block(&b, 0, 8, 2, UNIFORM, -1);
    run_block(e, &b);
    lh_expert_destroy(e);
}

/* Said before anything is sent: the next plan still works. */
static void test_bad_routings(void)
{
    static block b;
    const int64_t segment[2] = {4, 4}, falling[2] = {4, 3};
    const lh_expert_plan *p;
    lh_expert *e = NULL;
    char byte;

    CHECK_OK(lh_expert_create(&e, 2, 2 * comm->size, 8, 2, comm, comm, NULL));
    CHECK_STATUS(lh_expert_dispatch(e, &byte, &byte, 1, NULL), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 2, 8}, segment, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, -1, 3}, segment, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 3, 3}, segment, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 2, 3}, falling, 2, &p), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_make_plan(e, NULL, NULL, 3, &p), LH_ERR_INVALID);
    draw_block(&b, 2, 8, 2, UNIFORM, -1);
    run_block(e, &b);
    lh_expert_destroy(e);

    /* More rows than the block has room for: all ranks see it alike. */
    if (comm->size > 1) {
        CHECK_OK(lh_expert_create(&e, 2, 2, 8, 2, comm, comm, NULL));
        CHECK_STATUS(lh_expert_make_plan(e, (int32_t[]){0, 1, 2, 3}, segment, 2, &p),
                     LH_ERR_INVALID);
        lh_expert_destroy(e);
    }
}

static void test_create(void)
{
    lh_expert *e = NULL;

    CHECK_STATUS(lh_expert_create(&e, 10, 10, 8, 9, comm, comm, NULL), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_create(&e, 10, 10, 8, 0, comm, comm, NULL), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_create(&e, 11, 10, 8, 2, comm, comm, NULL), LH_ERR_INVALID);
    CHECK_STATUS(lh_expert_create(&e, 10, (int64_t)1 << 28, 8, 8, comm, comm, NULL),
                 LH_ERR_UNSUPPORTED);
    CHECK(!e);
    CHECK(lh_expert_bytes(10, (int64_t)1 << 28, 8, 8, 0, 1, 0) == SIZE_MAX);
    CHECK(lh_expert_bytes(100, 400, 8, 8, 1, 4, 0) < lh_expert_bytes(100, 800, 8, 8, 1, 4, 0));
    lh_expert_destroy(NULL);
}

int main(int argc, char **argv)
{
    check_init(argc, argv);
    CHECK_OK(lh_comm_mpi_create(&comm, 30));
    if (!comm)
        return 1;
    RUN(test_random_routings);
    RUN(test_a_rank_without_tokens);
    RUN(test_more_ranks_than_experts);
    RUN(test_top_k);
    RUN(test_no_tokens);
    RUN(test_bad_routings);
    RUN(test_create);
    lh_comm_destroy(comm);
    lh_comm_mpi_finalize();
    return check_done();
}
