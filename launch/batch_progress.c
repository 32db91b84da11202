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

void pen_batch_progress_text(const pen_batch_state *state, char *text, size_t size) {
    char failed[48] = "", left[32] = "";
    int64_t here = state->done - state->earlier;
    if (state->failed > 0) snprintf(failed, sizeof failed, " (%lld failed)", (long long)state->failed);
    if (here > 0 && state->done < state->requests) {
        char time[24];
        write_time((double)(state->requests - state->done) * state->seconds / (double)here, time, sizeof time);
        snprintf(left, sizeof left, ", %s left", time);
    }
    double tokens = (double)(state->prompt_tokens + state->output_tokens);
    snprintf(text, size, "%lld/%lld requests%s, %.1f tokens/s, %.1f of them output%s", (long long)state->done,
             (long long)state->requests, failed, state->seconds > 0 ? tokens / state->seconds : 0,
             state->seconds > 0 ? (double)state->output_tokens / state->seconds : 0, left);
}

void pen_batch_progress_show(pen_batch_progress *progress, const pen_batch_state *state, FILE *out) {
    char text[160];
    if (state->seconds < progress->next_s) return;
    bool first = progress->next_s == 0;
    progress->next_s = state->seconds + (progress->terminal ? terminal_every_s : plain_every_s);
    if (first) return; /* nothing is done yet */
    pen_batch_progress_text(state, text, sizeof text);
    fprintf(out, progress->terminal ? "\r\033[K%s" : "%s\n", text);
    progress->open = progress->terminal;
}

void pen_batch_progress_end(pen_batch_progress *progress, FILE *out) {
    if (progress->open) fputc('\n', out);
    progress->open = false;
}
