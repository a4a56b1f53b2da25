#include <stdio.h>

#include "runtime/cli/needle.h"

#define CELL_W 72
#define CELL_H 40
#define LEFT 76
#define TOP 64
#define RIGHT 24
#define BOTTOM 60
#define MIN_W 420 /* the title's */

/* From a pale to a deep blue: the lightness alone carries the value, so it also prints in grey. */
static void colour(double recall, char out[8])
{
    static const int pale[3] = {0xf1, 0xf5, 0xf9}, deep[3] = {0x1d, 0x4e, 0x89};
    int rgb[3];

    for (int i = 0; i < 3; i++)
        rgb[i] = (int)(pale[i] + recall * (deep[i] - pale[i]) + 0.5) & 0xff;
    (void)snprintf(out, 8, "#%02x%02x%02x", (unsigned)rgb[0], (unsigned)rgb[1], (unsigned)rgb[2]);
}

static void cell(FILE *f, int x, int y, int found, int trials)
{
    double recall = (double)found / trials;
    char fill[8];

    colour(recall, fill);
    (void)fprintf(f, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n", x, y,
                  CELL_W - 2, CELL_H - 2, fill);
    (void)fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\" fill=\"%s\">%.0f%%</text>\n",
                  x + CELL_W / 2 - 1, y + CELL_H / 2 + 4, recall > 0.5 ? "#ffffff" : "#1f2933",
                  100 * recall);
}

static void draw(FILE *f, const void *grid)
{
    const lh_needle_grid *g = grid;
    int width = LEFT + g->n_lengths * CELL_W + RIGHT, base = TOP + g->n_depths * CELL_H;

    width = width > MIN_W ? width : MIN_W;
    (void)fprintf(
        f,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
        "height=\"%d\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#1f2933\">\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n"
        "<text x=\"%d\" y=\"28\" font-size=\"16\">Recall of a hidden number</text>\n"
        "<text x=\"%d\" y=\"48\" fill=\"#52606d\">%d %s for each length and depth</text>\n",
        width, base + BOTTOM, width, base + BOTTOM, LEFT, LEFT, g->trials,
        g->trials == 1 ? "question" : "questions");
    for (int d = 0; d < g->n_depths; d++) {
        int y = TOP + d * CELL_H;
        (void)fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%lld%%</text>\n", LEFT - 10,
                      y + CELL_H / 2 + 4, (long long)g->depths[d]);
        for (int l = 0; l < g->n_lengths; l++)
            cell(f, LEFT + l * CELL_W, y, g->found[l * g->n_depths + d], g->trials);
    }
    for (int l = 0; l < g->n_lengths; l++)
        (void)fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
                      LEFT + l * CELL_W + CELL_W / 2 - 1, base + 18, lh_cli_length(g->lengths[l]));
    (void)fprintf(f,
                  "<text x=\"%d\" y=\"%d\" fill=\"#52606d\">length of the prompt in tokens</text>\n"
                  "<text transform=\"translate(20 %d) rotate(-90)\" text-anchor=\"middle\" "
                  "fill=\"#52606d\">depth</text>\n</svg>\n",
                  LEFT, base + 42, TOP + g->n_depths * CELL_H / 2);
}

lh_status lh_needle_svg(const char *path, const lh_needle_grid *g)
{
    return lh_cli_print_file(path, draw, g);
}
