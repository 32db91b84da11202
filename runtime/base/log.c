/* Log lines on stderr; see log.h. Each line is one write, so lines of several ranks do not mix. */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static pen_log_level log_level = PEN_LOG_WARN;
static int log_rank = -1;

void pen_log_init(pen_log_level level, int rank) {
    log_level = level;
    log_rank = rank;
}

int pen_log_enabled(pen_log_level level) {
    return level <= log_level;
}

void pen_log(pen_log_level level, const char *format, ...) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if (!pen_log_enabled(level)) return;
    char line[2048];
    int used = log_rank < 0 ? snprintf(line, sizeof line, "penstock %s: ", names[level])
                            : snprintf(line, sizeof line, "penstock[%d] %s: ", log_rank, names[level]);
    va_list args;
    va_start(args, format);
    vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    va_end(args);
    size_t length = strlen(line);
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, length) < 0) { /* nowhere left to say so */
    }
}
