/* Two panels: speed-up over ranks, both logarithmic, so that the ideal is a straight line; and the
 * efficiency of weak scaling. Colours hold on white and on black. */
#include <math.h>
#include <stdio.h>

#include "runtime/cli/scale.h"

#define PANEL_W 320
#define PANEL_H 260
#define LEFT 64
#define BETWEEN 84
#define TOP 92
#define RIGHT 24
#define BOTTOM 52
#define LEGEND_H 20
#define PER_LINE 7 /* lengths in a line of the legend */
#define LEGEND_W 96
#define WIDTH (LEFT + 2 * PANEL_W + BETWEEN + RIGHT)

static const char *const colours[] = {"#2f7fc1", "#d1690e", "#2b9a66", "#c2478f",
                                      "#8468d0", "#9a8300", "#d0494b", "#0f94a0"};
#define N_COLOURS ((int)(sizeof colours / sizeof *colours))

static const char style[] =
    "<style>text{fill:#1f2933}.soft{fill:#52606d}.paper{fill:#fff}.grid{stroke:#d9dee3}"
    ".ideal{stroke:#7b8794;stroke-dasharray:5 4}.data{stroke-width:2;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.soft{fill:#9aa5b1}.paper{fill:#14181d}"
    ".grid{stroke:#323f4b}}</style>\n";

/* What a panel shows, and where. */
typedef struct panel {
    FILE *f;
    const lh_scale *s;
    int kind;
    double left, top;
    double low, high; /* ends of the vertical axis, as in height() */
} panel;

static void put_text(FILE *f, const char *text)
{
    for (; *text; text++)
        if (*text == '<' || *text == '>' || *text == '&')
            (void)fprintf(f, "&#%d;", *text);
        else if ((unsigned char)*text >= ' ' && (unsigned char)*text < 127)
            (void)fputc(*text, f);
}

/* Values on the vertical axis: powers of two, or percent. */
static double height(const panel *p, const lh_scale_row *r)
{
    return p->kind == LH_SCALE_STRONG ? log2(r->speedup) : 100 * r->efficiency;
}

static double y_at(const panel *p, double at)
{
    return p->top + PANEL_H * (p->high - at) / (p->high - p->low);
}

static double x_at(const panel *p, int ranks)
{
    const lh_scale *s = p->s;
    double all = log2((double)s->counts[s->n_counts - 1] / s->counts[0]);

    return p->left + (all > 0 ? PANEL_W * log2((double)ranks / s->counts[0]) / all : PANEL_W / 2.0);
}

/* Ends of the axis that hold the ideal and every value. */
static void fit(panel *p)
{
    const lh_scale *s = p->s;
    int strong = p->kind == LH_SCALE_STRONG;

    p->low = 0;
    p->high = strong ? fmax(1, log2((double)s->counts[s->n_counts - 1] / s->counts[0])) : 100;
    for (int i = 0; i < s->n_lengths * s->n_counts; i++) {
        double y = height(p, lh_scale_row_at(s, p->kind, 0, i));
        p->low = fmin(p->low, floor(y));
        p->high = fmax(p->high, strong ? y : 25 * ceil(y / 25));
    }
}

static void draw_grid(const panel *p)
{
    const lh_scale *s = p->s;
    double step = p->kind == LH_SCALE_STRONG ? 1 : 25;

    for (double y = p->low; y <= p->high; y += step) {
        (void)fprintf(p->f,
                      "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                      p->left, y_at(p, y), p->left + PANEL_W, y_at(p, y));
        (void)fprintf(p->f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g%s</text>\n",
                      p->left - 8, y_at(p, y) + 4, p->kind == LH_SCALE_STRONG ? exp2(y) : y,
                      p->kind == LH_SCALE_STRONG ? "" : "%");
    }
    for (int k = 0; k < s->n_counts; k++)
        (void)fprintf(p->f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%d</text>\n",
                      x_at(p, s->counts[k]), p->top + PANEL_H + 20, s->counts[k]);
    (void)fprintf(
        p->f, "<text class=\"soft\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">ranks</text>\n",
        p->left + PANEL_W / 2.0, p->top + PANEL_H + 40);
}

static void draw_panel(panel *p, const char *title)
{
    const lh_scale *s = p->s;
    int first = s->counts[0], last = s->counts[s->n_counts - 1];
    double ideal = p->kind == LH_SCALE_STRONG ? log2((double)last / first) : 100;

    fit(p);
    (void)fprintf(p->f, "<text x=\"%.1f\" y=\"%.1f\">", p->left, p->top - 12);
    put_text(p->f, title);
    (void)fputs("</text>\n", p->f);
    draw_grid(p);
    (void)fprintf(p->f, "<line class=\"ideal\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                  x_at(p, first), y_at(p, p->kind == LH_SCALE_STRONG ? 0 : 100), x_at(p, last),
                  y_at(p, ideal));
    for (int l = 0; l < s->n_lengths; l++) {
        const char *colour = colours[l % N_COLOURS];
        (void)fprintf(p->f, "<polyline class=\"data\" stroke=\"%s\" points=\"", colour);
        for (int k = 0; k < s->n_counts; k++)
            (void)fprintf(p->f, "%.1f,%.1f ", x_at(p, s->counts[k]),
                          y_at(p, height(p, lh_scale_row_at(s, p->kind, l, k))));
        (void)fputs("\"/>\n", p->f);
        for (int k = 0; k < s->n_counts; k++)
            (void)fprintf(p->f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n",
                          x_at(p, s->counts[k]),
                          y_at(p, height(p, lh_scale_row_at(s, p->kind, l, k))), colour);
    }
}

static void draw_legend(FILE *f, const lh_scale *s, int top)
{
    for (int l = 0; l < s->n_lengths; l++) {
        int x = LEFT + l % PER_LINE * LEGEND_W, y = top + l / PER_LINE * LEGEND_H;
        (void)fprintf(f, "<rect x=\"%d\" y=\"%d\" width=\"16\" height=\"4\" fill=\"%s\"/>\n", x,
                      y - 6, colours[l % N_COLOURS]);
        (void)fprintf(f, "<text x=\"%d\" y=\"%d\">%s tokens</text>\n", x + 22, y,
                      lh_cli_length(s->lengths[l]));
    }
}

static void draw(FILE *f, const void *scale)
{
    const lh_scale *s = scale;
    int legend = (s->n_lengths + PER_LINE - 1) / PER_LINE * LEGEND_H;
    int tall = TOP + PANEL_H + BOTTOM + legend;

    (void)fprintf(f,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
                  "height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n%s"
                  "<rect class=\"paper\" width=\"100%%\" height=\"100%%\"/>\n"
                  "<text x=\"%d\" y=\"28\" font-size=\"16\">Prefill of ",
                  WIDTH, tall, WIDTH, tall, style, LEFT);
    put_text(f, lh_scale_model(s));
    (void)fprintf(f,
                  " over ranks</text>\n<text class=\"soft\" x=\"%d\" y=\"48\">%s, %d %s on each "
                  "rank, %s weights, commit %s</text>\n",
                  LEFT, s->backend, s->c->n_threads, s->c->n_threads == 1 ? "thread" : "threads",
                  lh_opt_text(s->c->opts, LH_OPT_WEIGHTS), lh_build_commit);
    draw_panel(&(panel){.f = f, .s = s, .kind = LH_SCALE_STRONG, .left = LEFT, .top = TOP},
               "strong: speed-up, the same prompt");
    draw_panel(
        &(panel){
            .f = f, .s = s, .kind = LH_SCALE_WEAK, .left = LEFT + PANEL_W + BETWEEN, .top = TOP},
        "weak: efficiency, as many tokens for each rank");
    draw_legend(f, s, TOP + PANEL_H + BOTTOM + 8);
    (void)fputs("</svg>\n", f);
}

lh_status lh_scale_svg(const char *path, const lh_scale *s)
{
    return lh_cli_print_file(path, draw, s);
}
