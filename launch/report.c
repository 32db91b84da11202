/* The plan as text; see report.h. */
#include "report.h"
#include "size.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHART_LINES = 32, BAR_MIN = 10, BAR_MAX = 48, STAGE_BAR = 16 };
#define IMBALANCE_TARGET 1.15 /* above it a measured run suggests another split */

const char *pen_report_ms(double ms, char text[PEN_REPORT_MS]) {
    int decimals = ms >= 999.95 ? 0 : ms >= 99.995 ? 1 : ms >= 9.9995 ? 2 : 3;
    snprintf(text, PEN_REPORT_MS, "%.*f", decimals, ms);
    return text;
}

static const char *ratio(double value, char text[PEN_REPORT_MS]) {
    if (isinf(value)) return "∞";
    snprintf(text, PEN_REPORT_MS, "%.2f×", value);
    return text;
}

/* Columns that UTF-8 text takes, if every character takes one. */
static int columns(const char *text) {
    int count = 0;
    for (; *text; text++) count += (*text & 0xc0) != 0x80;
    return count;
}

static void pad(FILE *out, const char *text, int width) {
    fprintf(out, "%s%*s", text, width - columns(text), "");
}

/* A bar of eighths of a column. Returns the columns that are left. */
static int bar(FILE *out, double share, int width) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    int filled = (int)lround(fmin(fmax(share, 0), 1) * width * 8);
    for (int i = 0; i < filled / 8; i++) fputs("█", out);
    fputs(eighths[filled % 8], out);
    return width - (filled + 7) / 8;
}

static void range_text(const pen_plan *plan, int first, int last, char *text, size_t size) {
    if (first == last)
        snprintf(text, size, "%s", plan->units[first].name);
    else
        snprintf(text, size, "%s … %s", plan->units[first].name, plan->units[last].name);
}

/* ---- Units ------------------------------------------------------------------------------------------------------- */

/* The last unit of the line that starts at `first`: neighbours whose times differ by less than `tolerance`. Embedding
 * and head have their own. */
static int line_end(const pen_plan *plan, int first, double tolerance) {
    int layers_end = plan->unit_count - pen_plan_trailing(plan), last = first;
    double low = plan->units[first].time_ms, high = low;
    if (first < pen_plan_leading(plan)) return first;
    while (last + 1 < layers_end) {
        double next = plan->units[last + 1].time_ms;
        low = fmin(low, next);
        high = fmax(high, next);
        if (high - low > tolerance * high) break;
        last++;
    }
    return last;
}

/* As little folding as fits the lines: equal ones only, then ever less equal ones. */
static double choose_tolerance(const pen_plan *plan) {
    for (double tolerance = 1e-9;; tolerance = fmax(2 * tolerance, 0.005)) {
        int lines = 0;
        for (int u = 0; u < plan->unit_count; u = line_end(plan, u, tolerance) + 1) lines++;
        if (lines <= CHART_LINES || tolerance > 1) return tolerance;
    }
}

static void report_statistics(FILE *out, const pen_plan *plan) {
    double sum = 0, squares = 0;
    int n = plan->unit_count, least = 0, most = 0;
    for (int u = 0; u < n; u++) {
        double ms = plan->units[u].time_ms;
        sum += ms;
        if (ms < plan->units[least].time_ms) least = u;
        if (ms > plan->units[most].time_ms) most = u;
    }
    double mean = sum / n;
    for (int u = 0; u < n; u++) squares += (plan->units[u].time_ms - mean) * (plan->units[u].time_ms - mean);
    char a[PEN_REPORT_MS], b[PEN_REPORT_MS], c[PEN_REPORT_MS], d[PEN_REPORT_MS], e[PEN_REPORT_MS];
    fprintf(out, "Units: count %d, sum %s ms, mean %s, std %s, min %s (%s), max %s (%s)\n", n, pen_report_ms(sum, a),
            pen_report_ms(mean, b), pen_report_ms(sqrt(squares / n), c), pen_report_ms(plan->units[least].time_ms, d),
            plan->units[least].name, pen_report_ms(plan->units[most].time_ms, e), plan->units[most].name);
    if (plan->source[0]) fprintf(out, "Times: %s\n", plan->source);
}

static void report_units(FILE *out, const pen_plan *plan, int width) {
    double tolerance = choose_tolerance(plan), longest = 0;
    int name_width = 0;
    for (int u = 0, last; u < plan->unit_count; u = last + 1) {
        char name[2 * PEN_PLAN_NAME + 8];
        last = line_end(plan, u, tolerance);
        range_text(plan, u, last, name, sizeof name);
        if (columns(name) > name_width) name_width = columns(name);
    }
    for (int u = 0; u < plan->unit_count; u++) longest = fmax(longest, plan->units[u].time_ms);
    int room = width - name_width - 22, bar_width = room < BAR_MIN ? BAR_MIN : room > BAR_MAX ? BAR_MAX : room;
    fputc('\n', out);
    for (int u = 0, last; u < plan->unit_count; u = last + 1) {
        char name[2 * PEN_PLAN_NAME + 8], ms[PEN_REPORT_MS], times[16] = "";
        last = line_end(plan, u, tolerance);
        double mean = 0;
        for (int v = u; v <= last; v++) mean += plan->units[v].time_ms / (last - u + 1);
        if (last > u) snprintf(times, sizeof times, "%d×", last - u + 1);
        range_text(plan, u, last, name, sizeof name);
        fputs("  ", out);
        pad(out, name, name_width);
        fprintf(out, "%*s%s %8s ms  ", 6 - columns(times), "", times, pen_report_ms(mean, ms));
        bar(out, longest > 0 ? mean / longest : 0, bar_width);
        fputc('\n', out);
    }
}

/* ---- Stages ------------------------------------------------------------------------------------------------------ */

static void report_split(FILE *out, const pen_plan *plan) {
    fprintf(out, "\n%d stage%s by %s, solved in %.2f ms; units", plan->stage_count, plan->stage_count == 1 ? "" : "s",
            plan->method, plan->solve_ms);
    for (int s = 0; s < plan->stage_count; s++)
        fprintf(out, "%c%d", s ? '/' : ' ', plan->stages[s].last - plan->stages[s].first + 1);
    fputs("\n\n", out);
}

static void report_stages(FILE *out, const pen_plan *plan) {
    int name_width = 5;
    bool memory = false;
    for (int s = 0; s < plan->stage_count; s++) {
        char name[2 * PEN_PLAN_NAME + 8];
        range_text(plan, plan->stages[s].first, plan->stages[s].last, name, sizeof name);
        if (columns(name) > name_width) name_width = columns(name);
        memory = memory || plan->stages[s].memory_bytes > 0;
    }
    fprintf(out, "  stage  %-*s  count          time  %*s%s\n", name_width, "units", STAGE_BAR, "",
            memory ? "      memory" : "");
    for (int s = 0; s < plan->stage_count; s++) {
        const pen_plan_stage *stage = &plan->stages[s];
        char name[2 * PEN_PLAN_NAME + 8], ms[PEN_REPORT_MS], used[PEN_SIZE_TEXT], limit[PEN_SIZE_TEXT];
        range_text(plan, stage->first, stage->last, name, sizeof name);
        fprintf(out, "  %5d  ", s);
        pad(out, name, name_width);
        fprintf(out, "  %5d  %9s ms  ", stage->last - stage->first + 1, pen_report_ms(stage->time_ms, ms));
        int left = bar(out, plan->score.max_ms > 0 ? stage->time_ms / plan->score.max_ms : 0, STAGE_BAR);
        if (memory) fprintf(out, "  %*s%10s", left, "", pen_size_text(stage->memory_bytes, used));
        if (memory && stage->memory_limit > 0)
            fprintf(out, " of %s, %.0f %%", pen_size_text(stage->memory_limit, limit),
                    100 * (double)stage->memory_bytes / (double)stage->memory_limit);
        fputc('\n', out);
    }
}

static void report_score(FILE *out, const pen_partition_score *score) {
    char a[PEN_REPORT_MS], b[PEN_REPORT_MS], c[PEN_REPORT_MS], d[PEN_REPORT_MS];
    fprintf(out, "max %s ms, min %s ms, mean %s ms, imbalance %s, efficiency %.0f %%", pen_report_ms(score->max_ms, a),
            pen_report_ms(score->min_ms, b), pen_report_ms(score->mean_ms, c), ratio(score->imbalance, d),
            100 * score->efficiency);
}

static void report_methods(FILE *out, const pen_plan *plan) {
    fprintf(out, "\n  method          max ms   imbalance  efficiency\n");
    for (int m = 0; m < plan->rival_count; m++) {
        const pen_plan_rival *rival = &plan->rivals[m];
        char ms[PEN_REPORT_MS], imbalance[PEN_REPORT_MS];
        const char *times = ratio(rival->score.imbalance, imbalance);
        bool chosen = strcmp(rival->method, plan->method) == 0;
        fprintf(out, "%s %-12s %9s  %*s%s     %5.1f %%%s\n", chosen ? "→" : " ", rival->method,
                pen_report_ms(rival->score.max_ms, ms), 10 - columns(times), "", times, 100 * rival->score.efficiency,
                rival->score.fits ? "" : "   does not fit the memory");
    }
}

static void report_front(FILE *out, const pen_plan *plan) {
    if (plan->point_count == 0) return;
    fprintf(out, "\n  tokens of KV   max ms\n");
    for (int p = 0; p < plan->point_count; p++) {
        char ms[PEN_REPORT_MS];
        fprintf(out, "  %12" PRId64 " %8s\n", plan->points[p].kv_tokens, pen_report_ms(plan->points[p].max_ms, ms));
    }
}

static bool has_kv(const pen_plan *plan) {
    for (int u = 0; u < plan->unit_count; u++)
        if (plan->units[u].kv_bytes_per_token > 0) return true;
    return false;
}

void pen_report_plan(FILE *out, const pen_plan *plan, int width) {
    report_statistics(out, plan);
    report_units(out, plan, width);
    report_split(out, plan);
    report_stages(out, plan);
    fputs("\n  ", out);
    report_score(out, &plan->score);
    char bound[PEN_REPORT_MS];
    fprintf(out, "\n  lower bound %s ms", pen_report_ms(plan->lower_bound_ms, bound));
    double above = plan->lower_bound_ms > 0 ? 100 * (plan->score.max_ms / plan->lower_bound_ms - 1) : 0;
    if (above >= 0.05)
        fprintf(out, ", the slowest stage is %.1f %% above it", above);
    else
        fputs(", reached", out);
    if (plan->stage_count > 1)
        fprintf(out, "; imbalance %s %.2f×", plan->score.imbalance < IMBALANCE_TARGET ? "within" : "misses",
                IMBALANCE_TARGET);
    if (has_kv(plan)) fprintf(out, "; %" PRId64 " tokens of KV", plan->kv_tokens);
    fputc('\n', out);
    report_methods(out, plan);
    report_front(out, plan);
    if (plan->remark_count > 0) fputc('\n', out);
    for (int r = 0; r < plan->remark_count; r++)
        fprintf(out, "%s: %s\n", plan->remarks[r].warning ? "warning" : "note", plan->remarks[r].text);
}

/* ---- After a run ------------------------------------------------------------------------------------------------- */

pen_status pen_report_measured(FILE *out, const pen_plan *plan, const double *measured_ms) {
    fprintf(out, "  stage      planned     measured\n");
    for (int s = 0; s < plan->stage_count; s++) {
        char a[PEN_REPORT_MS], b[PEN_REPORT_MS];
        fprintf(out, "  %5d  %8s ms  %8s ms\n", s, pen_report_ms(plan->stages[s].time_ms, a),
                pen_report_ms(measured_ms[s], b));
    }
    pen_partition_score measured = pen_partition_rate(measured_ms, plan->stage_count);
    fputs("  planned:  ", out);
    report_score(out, &plan->score);
    fputs("\n  measured: ", out);
    report_score(out, &measured);
    fputc('\n', out);

    int *first = malloc(((size_t)plan->stage_count + 1) * sizeof *first), moves;
    if (!first) return pen_fail(PEN_NO_MEMORY, "no memory to suggest a split");
    pen_status status = pen_plan_adjust(plan, measured_ms, IMBALANCE_TARGET, first, &moves);
    if (status == PEN_OK && moves > 0) {
        fprintf(out, "  suggested by the measured times: --layers ");
        for (int s = 0; s < plan->stage_count; s++) fprintf(out, "%s%d", s ? "," : "", first[s + 1] - first[s]);
        fputc('\n', out);
    }
    free(first);
    return status;
}
