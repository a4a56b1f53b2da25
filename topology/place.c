/* Ranks to places, by arithmetic alone. */
#include "topology/topology.h"

#include <string.h>

int lh_topology_gpus(const lh_topology *t)
{
    int n = 0;

    while (n < t->n_devices && t->devices[n].kind == LH_TOPO_GPU)
        n++;
    return n;
}

static int count_nodes(const lh_topology *t)
{
    int n = 0;

    for (int i = 0; i < t->n_numas; i++)
        n += t->numas[i].n_cores > 0;
    return n;
}

/* Number k among the NUMA nodes with cores. */
static int node_with_cores(const lh_topology *t, int k)
{
    int i = 0;

    while (t->numas[i].n_cores == 0 || k-- > 0)
        i++;
    return i;
}

/* r n / size without overflow */
static int share(int r, int n, int size)
{
    return (int)((long long)r * n / size);
}

/* The node whose cores a rank gets a part of. */
static int home(const lh_topology *t, int n_gpus, int rank, int size)
{
    if (n_gpus > 0) {
        int near = t->devices[rank % n_gpus].numa;
        if (near >= 0 && t->numas[near].n_cores > 0)
            return near;
    }
    return node_with_cores(t, share(rank, count_nodes(t), size));
}

lh_status lh_topology_place(lh_place *out, const lh_topology *t, int local_rank, int local_size)
{
    int n_gpus = lh_topology_gpus(t), n_nodes = count_nodes(t);
    int before = 0, together = 0; /* ranks of the same node */

    LH_REQUIRE(local_rank >= 0 && local_rank < local_size, LH_ERR_INVALID,
               "topology: rank %d of %d on this node", local_rank, local_size);
    out->gpu = n_gpus > 0 ? local_rank % n_gpus : -1;
    if (n_gpus == 0 && local_size < n_nodes) {
        int last = node_with_cores(t, share(local_rank + 1, n_nodes, local_size) - 1);
        out->numa = node_with_cores(t, share(local_rank, n_nodes, local_size));
        out->first_core = t->numas[out->numa].first_core;
        out->n_cores = t->numas[last].first_core + t->numas[last].n_cores - out->first_core;
        return LH_OK;
    }
    out->numa = home(t, n_gpus, local_rank, local_size);
    for (int r = 0; r < local_size; r++)
        if (home(t, n_gpus, r, local_size) == out->numa) {
            before += r < local_rank;
            together++;
        }
    const lh_topo_numa *node = &t->numas[out->numa];
    int begin = share(before, node->n_cores, together);
    int end = share(before + 1, node->n_cores, together);
    out->first_core = node->first_core + begin;
    out->n_cores = end > begin ? end - begin : 1;
    return LH_OK;
}

void lh_place_cores(unsigned char *cores, const lh_topology *t, const lh_place *place)
{
    memset(cores, 0, (size_t)t->n_cores);
    memset(cores + place->first_core, 1, (size_t)place->n_cores);
}
