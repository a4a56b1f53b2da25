/*
 * The machine a rank runs on, as plain numbers: packages, NUMA nodes, cores, caches, GPUs with the
 * links between them, and network adapters, found by hwloc here or read from a file of another
 * machine; and where the ranks of a node go on it.
 */
#ifndef LH_TOPOLOGY_TOPOLOGY_H
#define LH_TOPOLOGY_TOPOLOGY_H

#include <stddef.h>
#include <stdio.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lh_topo_core {
    int package, numa;   /* numbers from 0 in hwloc's logical order */
    int first_pu, n_pus; /* hardware threads: elements of lh_topology.pus */
    int usable;          /* the calling thread may run on it; always 1 for a machine from a file */
} lh_topo_core;

typedef struct lh_topo_numa {
    int os_index;
    size_t bytes;
    int first_core, n_cores; /* 0 cores: memory alone */
} lh_topo_numa;

/* Caches of one level that are alike. */
typedef struct lh_topo_cache {
    int level;
    size_t bytes;
    int n_pus; /* that share one */
    int count;
} lh_topo_cache;

typedef enum lh_topo_kind { LH_TOPO_GPU, LH_TOPO_NIC } lh_topo_kind;

typedef struct lh_topo_device {
    lh_topo_kind kind;
    char name[32];  /* of the operating system or driver: "nvml0", "mlx5_0"; "" if it has none */
    char bus[16];   /* "0000:17:00.0" */
    char model[64]; /* "" if unknown */
    int numa;       /* the node it is next to, -1: no single one */
} lh_topo_device;

/* GPUs that are joined without the bus between them (NVLink, also over switches). */
typedef struct lh_topo_link {
    int a, b;           /* elements of lh_topology.devices, a < b */
    double bytes_per_s; /* one way, from a to b */
} lh_topo_link;

typedef struct lh_topology {
    char cpu[64]; /* model, "" if unknown */
    int n_packages, n_numas, n_cores, n_pus, n_caches, n_devices, n_links;
    lh_topo_numa *numas;     /* [n_numas], at least 1 */
    lh_topo_core *cores;     /* [n_cores], at least 1; those of a NUMA node are neighbours */
    int *pus;                /* [n_pus]: the system's number of each hardware thread */
    lh_topo_cache *caches;   /* [n_caches], largest level first */
    lh_topo_device *devices; /* [n_devices]: GPUs by bus address, then network adapters */
    lh_topo_link *links;     /* [n_links]: as far as the system says */
} lh_topology;

/* This machine, or with `xml_path` not NULL the machine in that file of hwloc. LH_ERR_OPEN: the
 * file cannot be read; LH_ERR_DATA: it is not a machine. */
lh_status lh_topology_open(lh_topology **out, const char *xml_path);
void lh_topology_close(lh_topology *t); /* accepts NULL */

/* Where one rank goes. */
typedef struct lh_place {
    int gpu;                 /* element of lh_topology.devices, -1: none */
    int numa;                /* of its first core */
    int first_core, n_cores; /* at least 1 */
} lh_place;

/*
 * The place of rank `local_rank` of `local_size` on this node; a pure function. Ranks take the GPUs
 * in turn and share the cores next to their GPU. Without GPUs, or with one that is next to no
 * single node, they are dealt evenly over the NUMA nodes with cores: several ranks to a node never
 * leave it, fewer ranks than nodes get whole nodes. Ranks share a core only where a node has more
 * ranks than cores. LH_ERR_INVALID: not 0 <= local_rank < local_size.
 */
lh_status lh_topology_place(lh_place *out, const lh_topology *t, int local_rank, int local_size);

/* GPUs are the first of the devices: how many. */
int lh_topology_gpus(const lh_topology *t);

/* Marks in cores [n_cores] what a place has: 1, else 0. */
void lh_place_cores(unsigned char *cores, const lh_topology *t, const lh_place *place);

/* "cores 0-3,8 (PUs 0-3,8,16-20)" of cores [n_cores], cut to `size`. */
lh_status lh_topology_cores_text(char *out, size_t size, const lh_topology *t,
                                 const unsigned char *cores);

/* A rank for a drawing. */
typedef struct lh_topo_rank {
    int rank, gpu;              /* gpu: element of lh_topology.devices, -1: none */
    const unsigned char *cores; /* [n_cores] 1: it may run there */
} lh_topo_rank;

/* Writes the machine as an SVG picture: packages, nodes, cores, devices, and in colours the ranks.
 */
void lh_topology_draw(FILE *out, const lh_topology *t, const lh_topo_rank *ranks, int n_ranks);

/* Writes the machine as text, and with local_size > 0 the places of so many ranks. */
lh_status lh_topology_print(FILE *out, const lh_topology *t, int local_size);

#ifdef __cplusplus
}
#endif
#endif
