/* hwloc in, plain structs out: the only file that knows hwloc. */
#include <errno.h>
#include <hwloc.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "topology/topology.h"

#define MAX_CACHE_KINDS 16
#define VENDOR_NVIDIA 0x10de
#define CLASS_DISPLAY 0x03 /* upper byte of a PCI class */

static lh_status alloc_array(void *out, int count, size_t bytes, const char *what)
{
    size_t total;

    LH_REQUIRE(count >= 0 && lh_mul_size(&total, (size_t)count, bytes) == 0, LH_ERR_NOMEM,
               "topology: %d %s", count, what);
    return lh_alloc(out, total, what);
}

static lh_status load(hwloc_topology_t h, const char *xml_path)
{
    LH_REQUIRE(hwloc_topology_set_io_types_filter(h, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) == 0,
               LH_ERR_INTERNAL, "hwloc: no filter for devices: %s", strerror(errno));
    if (xml_path) {
        FILE *f = fopen(xml_path, "rb");
        LH_REQUIRE(f, LH_ERR_OPEN, "%s: %s", xml_path, strerror(errno));
        fclose(f);
        LH_REQUIRE(hwloc_topology_set_xml(h, xml_path) == 0 && hwloc_topology_load(h) == 0,
                   LH_ERR_DATA, "%s: not a machine that hwloc can read", xml_path);
        return LH_OK;
    }
    LH_REQUIRE(hwloc_topology_load(h) == 0, LH_ERR_INTERNAL, "hwloc finds no machine: %s",
               strerror(errno));
    return LH_OK;
}

/* The one NUMA node of a set, or its first with `any`; -1: none. */
static int numa_of(hwloc_topology_t h, hwloc_const_nodeset_t nodes, int any)
{
    if (!nodes || hwloc_bitmap_iszero(nodes) || (!any && hwloc_bitmap_weight(nodes) != 1))
        return -1;
    hwloc_obj_t node = hwloc_get_numanode_obj_by_os_index(h, (unsigned)hwloc_bitmap_first(nodes));
    return node ? (int)node->logical_index : -1;
}

/* `most` is the machine's number of PUs: a file may contradict itself. */
static lh_status add_core(lh_topology *t, hwloc_topology_t h, hwloc_obj_t obj, int numa, int most,
                          hwloc_const_cpuset_t bound)
{
    hwloc_obj_t package = hwloc_get_ancestor_obj_by_type(h, HWLOC_OBJ_PACKAGE, obj);
    lh_topo_core *core = &t->cores[t->n_cores++];

    core->package = package ? (int)package->logical_index : 0;
    core->numa = numa;
    core->usable = hwloc_bitmap_intersects(bound, obj->cpuset);
    core->first_pu = t->n_pus;
    for (int pu = -1; (pu = hwloc_bitmap_next(obj->cpuset, pu)) >= 0;) {
        LH_REQUIRE(t->n_pus < most, LH_ERR_DATA, "topology: cores have more than the %d PUs", most);
        t->pus[t->n_pus++] = pu;
    }
    core->n_pus = t->n_pus - core->first_pu;
    return LH_OK;
}

/* Nodes, and node by node their cores; a machine that shows no cores has one to each PU. */
static lh_status add_cores(lh_topology *t, hwloc_topology_t h, hwloc_const_cpuset_t bound)
{
    int n_numas = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_NUMANODE);
    int n_pus = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_PU);
    int n_cores = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_CORE);
    hwloc_obj_type_t type = n_cores > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;

    n_cores = n_cores > 0 ? n_cores : n_pus;
    LH_REQUIRE(n_numas > 0 && n_cores > 0 && n_pus >= n_cores, LH_ERR_DATA,
               "topology: %d NUMA nodes, %d cores, %d PUs: not a machine", n_numas, n_cores, n_pus);
    LH_TRY(alloc_array(&t->numas, n_numas, sizeof *t->numas, "NUMA nodes"));
    LH_TRY(alloc_array(&t->cores, n_cores, sizeof *t->cores, "cores"));
    LH_TRY(alloc_array(&t->pus, n_pus, sizeof *t->pus, "PUs"));
    int n_packages = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_PACKAGE);
    t->n_packages = n_packages > 0 ? n_packages : 1;
    t->n_numas = n_numas;
    for (int n = 0; n < n_numas; n++) {
        hwloc_obj_t node = hwloc_get_obj_by_type(h, HWLOC_OBJ_NUMANODE, (unsigned)n);
        lh_topo_numa *numa = &t->numas[n];
        numa->os_index = (int)node->os_index;
        numa->bytes = (size_t)node->attr->numanode.local_memory;
        numa->first_core = t->n_cores;
        for (int c = 0; c < n_cores; c++) {
            hwloc_obj_t core = hwloc_get_obj_by_type(h, type, (unsigned)c);
            int home = numa_of(h, core->nodeset, 1);
            if ((home < 0 ? 0 : home) == n)
                LH_TRY(add_core(t, h, core, n, n_pus, bound));
        }
        numa->n_cores = t->n_cores - numa->first_core;
    }
    return LH_OK;
}

static lh_status add_caches(lh_topology *t, hwloc_topology_t h)
{
    static const hwloc_obj_type_t types[] = {HWLOC_OBJ_L5CACHE, HWLOC_OBJ_L4CACHE,
                                             HWLOC_OBJ_L3CACHE, HWLOC_OBJ_L2CACHE,
                                             HWLOC_OBJ_L1CACHE};

    LH_TRY(alloc_array(&t->caches, MAX_CACHE_KINDS, sizeof *t->caches, "kinds of caches"));
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        for (hwloc_obj_t c = NULL; (c = hwloc_get_next_obj_by_type(h, types[i], c));) {
            lh_topo_cache found = {.level = (int)c->attr->cache.depth,
                                   .bytes = (size_t)c->attr->cache.size,
                                   .n_pus = hwloc_bitmap_weight(c->cpuset)};
            int k = 0;
            while (k < t->n_caches &&
                   (t->caches[k].level != found.level || t->caches[k].bytes != found.bytes ||
                    t->caches[k].n_pus != found.n_pus))
                k++;
            if (k == MAX_CACHE_KINDS)
                continue;
            if (k == t->n_caches)
                t->caches[t->n_caches++] = found;
            t->caches[k].count++;
        }
    }
    return LH_OK;
}

static void bus_text(char out[16], hwloc_obj_t pci)
{
    const struct hwloc_pcidev_attr_s *a = &pci->attr->pcidev;

    snprintf(out, 16, "%04x:%02x:%02x.%x", a->domain & 0xffffu, a->bus, a->dev, a->func & 0xfu);
}

static void describe(lh_topo_device *d, hwloc_topology_t h, hwloc_obj_t pci, const char *name)
{
    const char *model = hwloc_obj_get_info_by_name(pci, "PCIDevice");

    snprintf(d->name, sizeof d->name, "%s", name ? name : "");
    snprintf(d->model, sizeof d->model, "%s", model ? model : "");
    bus_text(d->bus, pci);
    d->numa = numa_of(h, hwloc_get_non_io_ancestor_obj(h, pci)->nodeset, 0);
}

static hwloc_obj_t pci_parent(hwloc_obj_t obj)
{
    while (obj && obj->type != HWLOC_OBJ_PCI_DEVICE)
        obj = obj->parent;
    return obj;
}

/* The name that the GPU's driver gives it, before what the display gives it. */
static const char *gpu_name(hwloc_obj_t pci)
{
    const char *name = NULL;

    for (hwloc_obj_t c = pci->io_first_child; c; c = c->next_sibling)
        if (c->name && (!name || strncmp(c->name, "nvml", 4) == 0))
            name = c->name;
    return name;
}

static int by_kind_and_bus(const void *x, const void *y)
{
    const lh_topo_device *a = x, *b = y;
    int bus = strcmp(a->bus, b->bus);

    return a->kind != b->kind ? (int)a->kind - (int)b->kind : bus ? bus : strcmp(a->name, b->name);
}

static int by_ends(const void *x, const void *y)
{
    const lh_topo_link *a = x, *b = y;

    return a->a != b->a ? a->a - b->a : a->b - b->b;
}

static int is_gpu(hwloc_obj_t pci)
{
    return pci->attr->pcidev.class_id >> 8 == CLASS_DISPLAY &&
           pci->attr->pcidev.vendor_id == VENDOR_NVIDIA;
}

static int is_nic(hwloc_obj_t os)
{
    return (os->attr->osdev.type == HWLOC_OBJ_OSDEV_NETWORK ||
            os->attr->osdev.type == HWLOC_OBJ_OSDEV_OPENFABRICS) &&
           pci_parent(os);
}

static lh_status add_devices(lh_topology *t, hwloc_topology_t h)
{
    int most = 0;

    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_pcidev(h, o));)
        most += is_gpu(o);
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_osdev(h, o));)
        most += is_nic(o);
    LH_TRY(alloc_array(&t->devices, most, sizeof *t->devices, "devices"));
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_pcidev(h, o));)
        if (is_gpu(o)) {
            t->devices[t->n_devices].kind = LH_TOPO_GPU;
            describe(&t->devices[t->n_devices++], h, o, gpu_name(o));
        }
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_osdev(h, o));)
        if (is_nic(o)) {
            t->devices[t->n_devices].kind = LH_TOPO_NIC;
            describe(&t->devices[t->n_devices++], h, pci_parent(o), o->name);
        }
    if (t->n_devices > 1)
        qsort(t->devices, (size_t)t->n_devices, sizeof *t->devices, by_kind_and_bus);
    return LH_OK;
}

static int device_of(const lh_topology *t, hwloc_obj_t obj)
{
    hwloc_obj_t pci = pci_parent(obj);
    char bus[sizeof t->devices->bus];

    if (!pci)
        return -1;
    bus_text(bus, pci);
    for (int i = 0; i < t->n_devices && t->devices[i].kind == LH_TOPO_GPU; i++)
        if (strcmp(t->devices[i].bus, bus) == 0)
            return i;
    return -1;
}

/* MB/s from object i to j of hwloc's matrix: directly, or over the switches that are in it beside
 * the GPUs, to which both have links. */
static double mb_per_s(const lh_topology *t, const struct hwloc_distances_s *d, unsigned i,
                       unsigned j)
{
    double direct = (double)d->values[i * d->nbobjs + j], in = 0, out = 0;

    for (unsigned k = 0; k < d->nbobjs; k++) {
        if (d->objs[k] && device_of(t, d->objs[k]) >= 0)
            continue;
        in += (double)d->values[i * d->nbobjs + k];
        out += (double)d->values[k * d->nbobjs + j];
    }
    return direct > 0 ? direct : in < out ? in : out;
}

static lh_status add_links(lh_topology *t, hwloc_topology_t h)
{
    struct hwloc_distances_s *d = NULL;
    unsigned found = 1;

    if (hwloc_distances_get_by_name(h, "NVLinkBandwidth", &found, &d, 0) != 0 || found == 0)
        return LH_OK;
    lh_status st =
        alloc_array(&t->links, t->n_devices * t->n_devices, sizeof *t->links, "links of GPUs");
    for (unsigned i = 0; i < d->nbobjs && st == LH_OK; i++)
        for (unsigned j = 0; j < d->nbobjs; j++) {
            lh_topo_link l = {.a = d->objs[i] ? device_of(t, d->objs[i]) : -1,
                              .b = d->objs[j] ? device_of(t, d->objs[j]) : -1,
                              .bytes_per_s = 1e6 * mb_per_s(t, d, i, j)};
            if (l.a >= 0 && l.a < l.b && l.bytes_per_s > 0 &&
                t->n_links < t->n_devices * t->n_devices)
                t->links[t->n_links++] = l;
        }
    hwloc_distances_release(h, d);
    if (t->n_links > 1)
        qsort(t->links, (size_t)t->n_links, sizeof *t->links, by_ends);
    return st;
}

lh_status lh_topology_open(lh_topology **out, const char *xml_path)
{
    lh_status st = LH_OK;
    hwloc_topology_t h = NULL;
    hwloc_cpuset_t bound = NULL;
    lh_topology *t = NULL;

    LH_REQUIRE(hwloc_topology_init(&h) == 0, LH_ERR_NOMEM, "hwloc does not start");
    /* Displays say nothing of use here, and asking a display server may wait for the network. */
    (void)hwloc_topology_set_components(h, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "gl");
    LH_TRY_OUT(load(h, xml_path));
    t = calloc(1, sizeof *t);
    bound = hwloc_bitmap_alloc();
    LH_REQUIRE_OUT(t && bound, LH_ERR_NOMEM, "topology");
    /* without a mask, as for a machine from a file, every core is usable */
    if (!hwloc_topology_is_thissystem(h) ||
        hwloc_get_cpubind(h, bound, HWLOC_CPUBIND_THREAD) != 0 || hwloc_bitmap_iszero(bound))
        hwloc_bitmap_fill(bound);
    LH_TRY_OUT(add_cores(t, h, bound));
    LH_TRY_OUT(add_caches(t, h));
    LH_TRY_OUT(add_devices(t, h));
    LH_TRY_OUT(add_links(t, h));
    hwloc_obj_t package = hwloc_get_obj_by_type(h, HWLOC_OBJ_PACKAGE, 0);
    const char *cpu = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
    snprintf(t->cpu, sizeof t->cpu, "%s", cpu ? cpu : "");
    *out = t;
    t = NULL;
out:
    lh_topology_close(t);
    hwloc_bitmap_free(bound);
    hwloc_topology_destroy(h);
    return st;
}

void lh_topology_close(lh_topology *t)
{
    if (!t)
        return;
    free(t->numas);
    free(t->cores);
    free(t->pus);
    free(t->caches);
    free(t->devices);
    free(t->links);
    free(t);
}
