/* A machine as a picture: nodes below each other, in each its cores and what is plugged in next to
 * them; a rank is a colour. */
#include "topology/topology.h"

#define MARGIN 24
#define HEAD 64 /* title */
#define PAD 12
#define LINE 18    /* of text */
#define PER_ROW 16 /* cores */
#define CORE_W 44
#define CORE_H 26
#define NODE_W (PER_ROW * CORE_W + 2 * PAD)
#define DEVICE_W ((NODE_W - 3 * PAD) / 2)
#define DEVICE_H 40
#define RANK_W 180 /* in the legend */
#define MAX_STRIPES 4

#define INK "#1f2933"
#define SOFT "#52606d"
#define LINE_GREY "#9aa5b1"
#define FREE "#e4e7eb" /* no rank */

/* Pale enough for dark text, told apart by lightness too. */
static const char *const colours[] = {"#8ecae6", "#ffb703", "#95d5b2", "#f4978e",
                                      "#cdb4db", "#e9d8a6", "#a3b18a", "#f7cad0"};
#define N_COLOURS ((int)(sizeof colours / sizeof *colours))

typedef struct picture {
    FILE *out;
    const lh_topology *t;
    const lh_topo_rank *ranks;
    int n_ranks;
} picture;

static void put_text(FILE *out, const char *text)
{
    for (; *text; text++)
        if (*text == '<' || *text == '>' || *text == '&' || *text == '"')
            fprintf(out, "&#%d;", *text);
        else if ((unsigned char)*text >= ' ' && (unsigned char)*text < 127)
            fputc(*text, out);
}

static void rect(FILE *out, int x, int y, int w, int h, const char *fill, const char *stroke)
{
    fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\" stroke=\"%s\"/>\n",
            x, y, w, h, fill, stroke);
}

static int rows_of(int n, int per_row)
{
    return (n + per_row - 1) / per_row;
}

static int devices_at(const lh_topology *t, int numa)
{
    int n = 0;

    for (int i = 0; i < t->n_devices; i++)
        n += t->devices[i].numa == numa;
    return n;
}

static int node_height(const lh_topology *t, int numa)
{
    int devices = rows_of(devices_at(t, numa), 2) * (DEVICE_H + PAD);
    int cores = numa >= 0 ? rows_of(t->numas[numa].n_cores, PER_ROW) * CORE_H : 0;

    return PAD + LINE + cores + PAD + devices;
}

/* A cell in the colours of its ranks: those with this core, or with this GPU. */
static void cell(const picture *p, int x, int y, int w, int h, int core, int gpu)
{
    int owners[MAX_STRIPES], n = 0;

    for (int i = 0; i < p->n_ranks && n < MAX_STRIPES; i++)
        if (core >= 0 ? p->ranks[i].cores[core] : gpu >= 0 && p->ranks[i].gpu == gpu)
            owners[n++] = p->ranks[i].rank;
    for (int i = 0; i < n; i++)
        rect(p->out, x + w * i / n, y, w * (i + 1) / n - w * i / n, h,
             colours[owners[i] % N_COLOURS], "none");
    rect(p->out, x, y, w, h, n > 0 ? "none" : FREE, LINE_GREY);
}

static void draw_cores(const picture *p, const lh_topo_numa *numa, int x, int y)
{
    for (int i = 0; i < numa->n_cores; i++) {
        int c = numa->first_core + i;
        int left = x + i % PER_ROW * CORE_W, top = y + i / PER_ROW * CORE_H;
        cell(p, left, top, CORE_W - 4, CORE_H - 4, c, -1);
        fprintf(p->out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\" fill=\"%s\"%s>%d</text>\n",
                left + CORE_W / 2 - 2, top + CORE_H / 2 + 2,
                p->t->cores[c].usable ? INK : LINE_GREY,
                p->t->cores[c].usable ? "" : " text-decoration=\"line-through\"", c);
    }
}

static void draw_device(const picture *p, int index, int x, int y)
{
    const lh_topo_device *d = &p->t->devices[index];
    int is_gpu = d->kind == LH_TOPO_GPU, n_links = 0;

    cell(p, x, y, DEVICE_W, DEVICE_H, -1, is_gpu ? index : -1);
    fprintf(p->out, "<text x=\"%d\" y=\"%d\">", x + 8, y + 16);
    if (is_gpu)
        fprintf(p->out, "gpu %d, ", index);
    put_text(p->out, d->model[0] ? d->model : d->name);
    fprintf(p->out, "</text>\n<text x=\"%d\" y=\"%d\" fill=\"" SOFT "\">", x + 8, y + 32);
    put_text(p->out, d->bus);
    if (d->name[0])
        fprintf(p->out, ", ");
    put_text(p->out, d->name);
    for (int i = 0; i < p->t->n_links; i++)
        n_links += is_gpu && (p->t->links[i].a == index || p->t->links[i].b == index);
    if (n_links > 0)
        fprintf(p->out, ", NVLink to %d GPU%s", n_links, n_links == 1 ? "" : "s");
    fprintf(p->out, "</text>\n");
}

/* numa -1: what is next to no single node. */
static void draw_node(const picture *p, int numa, int x, int y)
{
    const lh_topology *t = p->t;
    int at = y + PAD + LINE, n = 0;

    rect(p->out, x, y, NODE_W, node_height(t, numa), "#ffffff", LINE_GREY);
    fprintf(p->out, "<text x=\"%d\" y=\"%d\" fill=\"" SOFT "\">", x + PAD, y + LINE);
    if (numa < 0) {
        fprintf(p->out, "next to no single node</text>\n");
    } else {
        const lh_topo_numa *node = &t->numas[numa];
        fprintf(p->out, "node %d, ", numa);
        if (node->n_cores > 0)
            fprintf(p->out, "package %d, ", t->cores[node->first_core].package);
        fprintf(p->out, "%.0f GiB</text>\n", (double)node->bytes / (1 << 30));
        draw_cores(p, node, x + PAD, at);
        at += rows_of(node->n_cores, PER_ROW) * CORE_H + PAD;
    }
    for (int i = 0; i < t->n_devices; i++)
        if (t->devices[i].numa == numa) {
            draw_device(p, i, x + PAD + n % 2 * (DEVICE_W + PAD), at + n / 2 * (DEVICE_H + PAD));
            n++;
        }
}

static int is_last_of_package(const lh_topology *t, int numa)
{
    const lh_topo_numa *a = &t->numas[numa];

    if (numa + 1 == t->n_numas || a->n_cores == 0 || a[1].n_cores == 0)
        return 1;
    return t->cores[a->first_core].package != t->cores[a[1].first_core].package;
}

/* Nodes of one package are close to each other, in a frame. */
static int draw_nodes(const picture *p, int y)
{
    const lh_topology *t = p->t;

    for (int first = 0, next; first < t->n_numas; first = next) {
        int height = PAD;
        for (next = first; next == first || !is_last_of_package(t, next - 1); next++)
            height += node_height(t, next) + PAD;
        rect(p->out, MARGIN, y, NODE_W + 2 * PAD, height, "#f5f7fa", LINE_GREY);
        int at = y + PAD;
        for (int n = first; n < next; n++) {
            draw_node(p, n, MARGIN + PAD, at);
            at += node_height(t, n) + PAD;
        }
        y += height + PAD;
    }
    if (devices_at(t, -1) > 0) {
        draw_node(p, -1, MARGIN + PAD, y);
        y += node_height(t, -1) + PAD;
    }
    return y;
}

static int height_of(const lh_topology *t, int n_ranks)
{
    int y = HEAD;

    for (int n = 0; n < t->n_numas; n++)
        y += node_height(t, n) + PAD + (is_last_of_package(t, n) ? 2 * PAD : 0);
    if (devices_at(t, -1) > 0)
        y += node_height(t, -1) + PAD;
    return y + rows_of(n_ranks, (NODE_W + 2 * PAD) / RANK_W) * LINE + MARGIN;
}

static void draw_legend(const picture *p, int y)
{
    int per_row = (NODE_W + 2 * PAD) / RANK_W;

    for (int i = 0; i < p->n_ranks; i++) {
        const lh_topo_rank *r = &p->ranks[i];
        int left = MARGIN + i % per_row * RANK_W, top = y + i / per_row * LINE;
        rect(p->out, left, top, 12, 12, colours[r->rank % N_COLOURS], LINE_GREY);
        fprintf(p->out, "<text x=\"%d\" y=\"%d\">rank %d", left + 18, top + 11, r->rank);
        if (r->gpu >= 0)
            fprintf(p->out, ", gpu %d", r->gpu);
        fprintf(p->out, "</text>\n");
    }
}

void lh_topology_draw(FILE *out, const lh_topology *t, const lh_topo_rank *ranks, int n_ranks)
{
    const picture p = {out, t, ranks, n_ranks};
    int width = NODE_W + 2 * PAD + 2 * MARGIN, height = height_of(t, n_ranks);

    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\" font-family=\"sans-serif\" font-size=\"12\" fill=\"" INK "\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n"
            "<text x=\"%d\" y=\"28\" font-size=\"16\">",
            width, height, width, height, MARGIN);
    put_text(out, t->cpu[0] ? t->cpu : "Machine");
    fprintf(out,
            "</text>\n<text x=\"%d\" y=\"48\" fill=\"" SOFT "\">%d packages, %d NUMA nodes, %d "
            "cores, %d PUs, %d GPUs</text>\n",
            MARGIN, t->n_packages, t->n_numas, t->n_cores, t->n_pus, lh_topology_gpus(t));
    draw_legend(&p, draw_nodes(&p, HEAD));
    fprintf(out, "</svg>\n");
}
