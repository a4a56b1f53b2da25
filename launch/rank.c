#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

#define MAX_RANKS 1000000

/* The names by which a launcher says the same four things. */
typedef struct launcher {
    const char *name;
    const char *rank, *size;
    const char *local_rank, *local_size; /* local_size NULL: said in another way, see slurm_local */
} launcher;

static const launcher open_mpi = {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                  "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
static const launcher slurm = {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
                               NULL};
static const launcher pmi = {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"};

/* The digits at `text` up to `end` as a number in [low, high]. */
static int parse(const char *text, const char *end, int low, int high, int *out)
{
    int value = 0;

    if (text == end || end - text > 7)
        return -1;
    for (; text < end; text++) {
        if (*text < '0' || *text > '9')
            return -1;
        value = 10 * value + (*text - '0');
    }
    *out = value;
    return value >= low && value <= high ? 0 : -1;
}

static lh_status read_number(const char *name, int low, int high, int *out)
{
    const char *text = getenv(name);

    LH_REQUIRE(text, LH_ERR_USAGE, "%s is not set, though the launcher's other variables are",
               name);
    LH_REQUIRE(parse(text, text + strlen(text), low, high, out) == 0, LH_ERR_USAGE,
               "%s is '%.40s', expected a number from %d to %d", name, text, low, high);
    return LH_OK;
}

/* Entry `node` of a list like "4(x2),3": four tasks on nodes 0 and 1, three on node 2. */
static int list_entry(const char *list, int node, int *out)
{
    while (*list) {
        size_t len = strcspn(list, ",");
        const char *end = list + len, *paren = memchr(list, '(', len);
        int tasks, nodes = 1;
        if (parse(list, paren ? paren : end, 1, MAX_RANKS, &tasks) != 0)
            return -1;
        if (paren && (paren[1] != 'x' || end[-1] != ')' ||
                      parse(paren + 2, end - 1, 1, MAX_RANKS, &nodes) != 0))
            return -1;
        if (node < nodes) {
            *out = tasks;
            return 0;
        }
        node -= nodes;
        list = *end ? end + 1 : end;
    }
    return -1;
}

/* Slurm says how many tasks each node has, and which node this is. */
static lh_status slurm_local(int size, int *local_size)
{
    const char *name = "SLURM_STEP_TASKS_PER_NODE", *list = getenv(name);
    int node = 0;

    LH_TRY(read_number("SLURM_NODEID", 0, size - 1, &node));
    LH_REQUIRE(list && list_entry(list, node, local_size) == 0, LH_ERR_USAGE,
               "%s is '%.40s', expected a list like 4(x2),3 with node %d in it", name,
               list ? list : "", node);
    return LH_OK;
}

static lh_status read_launcher(const launcher *l, lh_rank_info *out)
{
    lh_rank_info r = {.launcher = l->name};

    LH_TRY(read_number(l->size, 1, MAX_RANKS, &r.size));
    LH_TRY(read_number(l->rank, 0, r.size - 1, &r.rank));
    if (l->local_size && !getenv(l->local_rank) && !getenv(l->local_size)) {
        r.local_rank = r.rank; /* a launcher that does not speak of nodes */
        r.local_size = r.size;
    } else {
        if (l->local_size)
            LH_TRY(read_number(l->local_size, 1, r.size, &r.local_size));
        else
            LH_TRY(slurm_local(r.size, &r.local_size));
        LH_TRY(read_number(l->local_rank, 0, r.local_size - 1, &r.local_rank));
    }
    *out = r;
    return LH_OK;
}

lh_status lh_rank_info_read(lh_rank_info *out)
{
    const char *step_tasks = getenv(slurm.size);

    *out = (lh_rank_info){.size = 1, .local_size = 1, .launcher = "none"};
    if (getenv(open_mpi.rank) || getenv(open_mpi.size))
        return read_launcher(&open_mpi, out);
    if (step_tasks && strcmp(step_tasks, "1") != 0)
        return read_launcher(&slurm, out);
    if (getenv(pmi.rank) || getenv(pmi.size))
        return read_launcher(&pmi, out);
    return LH_OK;
}

int lh_visible_gpus(int *gpus, int most)
{
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int n = 0;

    if (!list)
        return -1;
    while (*list && n < most) {
        size_t len = strcspn(list, ",");
        if (parse(list, list + len, 0, MAX_RANKS, &gpus[n]) != 0)
            return *list == '-' ? n : -1; /* CUDA ends the list at -1 */
        n++;
        list += len + (list[len] == ',');
    }
    return n;
}
