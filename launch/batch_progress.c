/* How far a batch is; see batch_progress.h. */
#include "batch_progress.h"

static const double terminal_every_s = 0.2, plain_every_s = 10;

/* "45s", "1m 20s", "3h 05m", "2d 04h" */
static void write_time(double seconds, char *text, size_t size) {
    int64_t s = (int64_t)(seconds + 0.5);
    if (s < 60)
        snprintf(text, size, "%ds", (int)s);
    else if (s < 3600)
        snprintf(text, size, "%dm %02ds", (int)(s / 60), (int)(s % 60));
    else if (s < 86400)
        snprintf(text, size, "%dh %02dm", (int)(s / 3600), (int)(s / 60 % 60));
    else
        snprintf(text, size, "%lldd %02dh", (long long)(s / 86400), (int)(s / 3600 % 24));
}

/* A bar of eight heights for each replica. */
static void write_bars(const pen_batch_state *state, char *text, size_t size) {
    static const char *const bars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    size_t used = (size_t)snprintf(text, size, ", replicas ");
    for (int r = 0; r < state->replicas && r < PEN_BATCH_BARS_MOST; r++) {
        int height = (int)(state->busy[r] * 8);
        used += (size_t)snprintf(text + used, size - used, "%s", bars[height < 0 ? 0 : height > 7 ? 7 : height]);
    }
}

void pen_batch_progress_text(const pen_batch_state *state, char text[PEN_BATCH_PROGRESS_TEXT]) {
    char failed[48] = "", left[32] = "", bars[4 * PEN_BATCH_BARS_MOST] = "";
    int64_t here = state->done - state->earlier;
    if (state->failed > 0) snprintf(failed, sizeof failed, " (%lld failed)", (long long)state->failed);
    if (here > 0 && state->done < state->requests) {
        char time[24];
        write_time((double)(state->requests - state->done) * state->seconds / (double)here, time, sizeof time);
        snprintf(left, sizeof left, ", %s left", time);
    }
    if (state->replicas > 1) write_bars(state, bars, sizeof bars);
    double tokens = (double)(state->prompt_tokens + state->output_tokens);
    snprintf(text, PEN_BATCH_PROGRESS_TEXT, "%lld/%lld requests%s, %.1f tokens/s%s%s", (long long)state->done,
             (long long)state->requests, failed, state->seconds > 0 ? tokens / state->seconds : 0, left, bars);
}

void pen_batch_progress_show(pen_batch_progress *progress, const pen_batch_state *state, FILE *out) {
    char text[PEN_BATCH_PROGRESS_TEXT];
    if (state->seconds < progress->next_s) return;
    bool first = progress->next_s == 0;
    progress->next_s = state->seconds + (progress->terminal ? terminal_every_s : plain_every_s);
    if (first) return; /* nothing is done yet */
    pen_batch_progress_text(state, text);
    fprintf(out, progress->terminal ? "\r\033[K%s" : "%s\n", text);
    progress->open = progress->terminal;
}

void pen_batch_progress_end(pen_batch_progress *progress, FILE *out) {
    if (progress->open) fputc('\n', out);
    progress->open = false;
}
