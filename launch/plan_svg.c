/*
 * The plan as a picture; see plan_svg.h.
 *
 * Two panels: on top every unit's time as a bar, in the colour of its stage, on the stage's band; below a row for each
 * stage with its units, its time against the slowest and the lower bound, and its memory against the limit. Colours are
 * chosen to be read on light and on dark ground; the ground itself follows the reader's preference.
 */
#include "plan_svg.h"
#include "report.h"
#include "size.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Lengths in pixels. */
enum {
    WIDTH = 1000,
    LEFT = 56,
    RIGHT = 24,
    CHART_TOP = 92,
    CHART_HEIGHT = 210,
    ROWS_GAP = 72, /* between the chart and the first stage's row: axis labels and column titles */
    UNITS_X = 56,
    TIME_X = 330,
    TIME_WIDTH = 210,
    MEMORY_X = 650,
    MEMORY_WIDTH = 170,
};

static const char *const colours[] = {"#4c8bd0", "#e5893a", "#4aa564", "#c8577a",
                                      "#8a6fd1", "#2ba6a6", "#b7952b", "#8c7266"};

static const char style[] =
    "text{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#25303b}"
    ".title{font-size:18px;font-weight:600}.faint{fill:#687684}.small{font-size:11px}"
    ".ground{fill:#ffffff}.grid{stroke:#dfe4e9}.track{fill:#e9edf1}.line{stroke:#25303b}.over{fill:#d33a3a}"
    "@media(prefers-color-scheme:dark){text{fill:#e3e8ed}.faint{fill:#93a0ad}.ground{fill:#12171d}"
    ".grid{stroke:#2b343d}.track{fill:#242d36}.line{stroke:#e3e8ed}.over{fill:#f06a6a}}";

static void escape(FILE *out, const char *text) {
    for (; *text; text++) switch (*text) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        default: fputc(*text, out);
        }
}

static const char *colour(int stage) {
    return colours[stage % (int)(sizeof colours / sizeof *colours)];
}

static void units_text(FILE *out, const pen_plan *plan, const pen_plan_stage *stage) {
    escape(out, plan->units[stage->first].name);
    if (stage->last == stage->first) return;
    fputs(" … ", out);
    escape(out, plan->units[stage->last].name);
}

/* 1, 2 or 5 times a power of ten: the step of about five grid lines. */
static double grid_step(double most) {
    double raw = most / 5, power = pow(10, floor(log10(raw))), lead = raw / power;
    return power * (lead > 5 ? 10 : lead > 2 ? 5 : lead > 1 ? 2 : 1);
}

static void draw_title(FILE *out, const pen_plan *plan) {
    char ms[PEN_REPORT_MS], bound[PEN_REPORT_MS];
    fprintf(out, "<text class=\"title\" x=\"%d\" y=\"34\">%d stage%s by %s: slowest %s ms, efficiency %.0f %%</text>\n",
            LEFT, plan->stage_count, plan->stage_count == 1 ? "" : "s", plan->method,
            pen_report_ms(plan->score.max_ms, ms), 100 * plan->score.efficiency);
    fprintf(out, "<text class=\"faint\" x=\"%d\" y=\"56\">lower bound %s ms", LEFT,
            pen_report_ms(plan->lower_bound_ms, bound));
    if (isfinite(plan->score.imbalance)) fprintf(out, "; imbalance %.2f×", plan->score.imbalance);
    if (plan->source[0]) {
        fputs("; times: ", out);
        escape(out, plan->source);
    }
    fputs("</text>\n", out);
}

static void draw_units(FILE *out, const pen_plan *plan) {
    double most = 0, step, plot = WIDTH - LEFT - RIGHT, slot = plot / plan->unit_count;
    for (int s = 0; s < plan->stage_count; s++)
        for (int u = plan->stages[s].first; u <= plan->stages[s].last; u++)
            most = fmax(most, pen_plan_unit_ms(plan, u, plan->stages[s].device));
    if (most <= 0) most = 1;
    step = grid_step(most);
    double top = ceil(most / step) * step, scale = CHART_HEIGHT / top, bottom = CHART_TOP + CHART_HEIGHT;
    for (int s = 0; s < plan->stage_count; s++) {
        const pen_plan_stage *stage = &plan->stages[s];
        double x = LEFT + slot * stage->first, width = slot * (stage->last - stage->first + 1);
        fprintf(out, "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\" fill=\"%s\" opacity=\"0.14\"/>\n", x,
                CHART_TOP - 18, width, CHART_HEIGHT + 18, colour(s));
        if (width >= 16)
            fprintf(out, "<text class=\"small\" x=\"%.2f\" y=\"%d\" text-anchor=\"middle\">%s%d</text>\n",
                    x + width / 2, CHART_TOP - 5, width >= 60 ? "stage " : "", s);
    }
    for (int line = 0; line * step <= top * 1.0001; line++) {
        double y = bottom - line * step * scale;
        fprintf(out, "<path class=\"grid\" d=\"M%d %.1fH%d\"/>", LEFT, y, WIDTH - RIGHT);
        fprintf(out, "<text class=\"faint small\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", LEFT - 8, y + 4,
                line * step);
    }
    for (int s = 0; s < plan->stage_count; s++)
        for (int u = plan->stages[s].first; u <= plan->stages[s].last; u++) {
            double ms = pen_plan_unit_ms(plan, u, plan->stages[s].device), gap = slot > 5 ? slot * 0.18 : 0;
            char text[PEN_REPORT_MS];
            fprintf(out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"><title>",
                    LEFT + slot * u + gap / 2, bottom - ms * scale, slot - gap, ms * scale, colour(s));
            escape(out, plan->units[u].name);
            fprintf(out, ": %s ms</title></rect>\n", pen_report_ms(ms, text));
        }
    fprintf(out, "<text class=\"faint small\" x=\"%d\" y=\"%.0f\">ms per unit; the bands are the stages</text>\n", LEFT,
            bottom + 18);
}

static void draw_stage(FILE *out, const pen_plan *plan, int s, double y, double height, uint64_t most_bytes) {
    const pen_plan_stage *stage = &plan->stages[s];
    char ms[PEN_REPORT_MS], used[PEN_SIZE_TEXT], limit[PEN_SIZE_TEXT];
    double thick = height * 0.62, bar_y = y + (height - thick) / 2, text_y = y + height / 2 + 4;
    double share = plan->score.max_ms > 0 ? stage->time_ms / plan->score.max_ms : 0;
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" class=\"faint\">%d</text>", UNITS_X - 12, text_y, s);
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" clip-path=\"url(#names)\">", UNITS_X, text_y);
    units_text(out, plan, stage);
    fprintf(out, " <tspan class=\"faint\">(%d)</tspan></text>\n", stage->last - stage->first + 1);
    fprintf(out, "<rect class=\"track\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" rx=\"2\"/>", TIME_X, bar_y,
            TIME_WIDTH, thick);
    fprintf(out, "<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" fill=\"%s\"/>", TIME_X, bar_y,
            share * TIME_WIDTH, thick, colour(s));
    fprintf(out, "<text x=\"%d\" y=\"%.1f\">%s ms</text>\n", TIME_X + TIME_WIDTH + 10, text_y,
            pen_report_ms(stage->time_ms, ms));
    if (most_bytes == 0) return;
    bool limited = stage->memory_limit > 0, over = limited && stage->memory_bytes > stage->memory_limit;
    double full = (double)(limited ? stage->memory_limit : most_bytes);
    if (limited)
        fprintf(out, "<rect class=\"track\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" rx=\"2\"/>", MEMORY_X,
                bar_y, MEMORY_WIDTH, thick);
    fprintf(out, "<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" %s%s\" opacity=\"0.8\"/>", MEMORY_X,
            bar_y, fmin((double)stage->memory_bytes / full, 1) * MEMORY_WIDTH, thick, over ? "class=\"" : "fill=\"",
            over ? "over" : colour(s));
    fprintf(out, "<text x=\"%d\" y=\"%.1f\">%s", MEMORY_X + MEMORY_WIDTH + 10, text_y,
            pen_size_text(stage->memory_bytes, used));
    if (limited) fprintf(out, " <tspan class=\"faint\">of %s</tspan>", pen_size_text(stage->memory_limit, limit));
    fputs("</text>\n", out);
}

static void draw_stages(FILE *out, const pen_plan *plan, double top, double row) {
    uint64_t most_bytes = 0;
    for (int s = 0; s < plan->stage_count; s++)
        if (plan->stages[s].memory_bytes > most_bytes) most_bytes = plan->stages[s].memory_bytes;
    fprintf(out, "<g class=\"small\"><text class=\"faint small\" x=\"%d\" y=\"%.0f\">units</text>", UNITS_X, top - 8);
    fprintf(out, "<text class=\"faint small\" x=\"%d\" y=\"%.0f\">time, and the lower bound</text>", TIME_X, top - 8);
    if (most_bytes > 0)
        fprintf(out, "<text class=\"faint small\" x=\"%d\" y=\"%.0f\">memory against its limit</text>", MEMORY_X,
                top - 8);
    fputs("</g>\n", out);
    for (int s = 0; s < plan->stage_count; s++) draw_stage(out, plan, s, top + row * s, row, most_bytes);
    if (plan->score.max_ms > 0)
        fprintf(out, "<path class=\"line\" stroke-dasharray=\"3 3\" d=\"M%.1f %.1fV%.1f\"/>\n",
                TIME_X + plan->lower_bound_ms / plan->score.max_ms * TIME_WIDTH, top, top + row * plan->stage_count);
}

pen_status pen_plan_svg(const pen_plan *plan, char **text) {
    size_t length;
    FILE *out = open_memstream(text, &length);
    if (!out) return pen_fail(PEN_NO_MEMORY, "no memory to draw a plan");
    double row = plan->stage_count <= 16 ? 26 : 18, top = CHART_TOP + CHART_HEIGHT + ROWS_GAP;
    double height = top + row * plan->stage_count + 24;
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" "
            "role=\"img\">\n<style>%s</style>\n<rect class=\"ground\" width=\"100%%\" height=\"100%%\"/>\n",
            WIDTH, height, WIDTH, height, style);
    fprintf(out, "<clipPath id=\"names\"><rect x=\"%d\" width=\"%d\" height=\"100%%\"/></clipPath>\n", UNITS_X,
            TIME_X - UNITS_X - 12);
    draw_title(out, plan);
    draw_units(out, plan);
    draw_stages(out, plan, top, row);
    fputs("</svg>\n", out);
    if (fclose(out) == 0 && *text) return PEN_OK;
    free(*text);
    return pen_fail(PEN_NO_MEMORY, "no memory to draw a plan");
}

/* ---- The file ---------------------------------------------------------------------------------------------------- */

static pen_status put(const char *path, const char *name, const char *text, FILE *file) {
    int error = 0;
    if (!file || fputs(text, file) < 0 || fflush(file) != 0) error = errno;
    if (file && fclose(file) != 0 && error == 0) error = errno;
    if (error == 0 && name != path && rename(name, path) != 0) error = errno;
    if (error != 0 && name != path) unlink(name);
    return error == 0 ? PEN_OK : pen_fail(PEN_IO, "%s cannot be written: %s", path, strerror(error));
}

/* Under another name first, unless the path leads to a device or a pipe, which must not be replaced. */
static pen_status put_whole(const char *path, const char *text) {
    struct stat there;
    if (stat(path, &there) == 0 && !S_ISREG(there.st_mode)) return put(path, path, text, fopen(path, "w"));
    char *name;
    if (asprintf(&name, "%s.XXXXXX", path) < 0) return pen_fail(PEN_NO_MEMORY, "no memory for a file's name");
    mode_t mask = umask(0);
    umask(mask);
    int descriptor = mkstemp(name);
    FILE *file = descriptor >= 0 ? fdopen(descriptor, "w") : NULL;
    if (file && fchmod(descriptor, 0666 & ~mask) != 0) errno = 0; /* a file that only its owner reads will do */
    pen_status status = put(path, name, text, file);
    free(name);
    return status;
}

pen_status pen_plan_svg_write(const pen_plan *plan, const char *path) {
    char *text;
    PEN_TRY(pen_plan_svg(plan, &text));
    pen_status status = put_whole(path, text);
    free(text);
    return status;
}
