/*
 * Log lines on stderr: `penstock[rank] level: text`. stdout is for results and never written here.
 *
 * The rank and the level are set once at start-up (before threads are made); rank < 0 leaves the rank out.
 */
#ifndef PEN_LOG_H
#define PEN_LOG_H

typedef enum pen_log_level { PEN_LOG_ERROR, PEN_LOG_WARN, PEN_LOG_INFO, PEN_LOG_DEBUG } pen_log_level;

void pen_log_init(pen_log_level level, int rank);
int pen_log_enabled(pen_log_level level);
void pen_log(pen_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define PEN_WARN(...)  pen_log(PEN_LOG_WARN, __VA_ARGS__)
#define PEN_INFO(...)  pen_log(PEN_LOG_INFO, __VA_ARGS__)
#define PEN_DEBUG(...) pen_log(PEN_LOG_DEBUG, __VA_ARGS__)

#endif
