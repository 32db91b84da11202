/*
 * The commands. Each gets its parsed options, writes its result to stdout and returns; main() alone prints the error
 * text and ends the process.
 */
#ifndef PEN_COMMAND_H
#define PEN_COMMAND_H

#include "gguf.h"
#include "log.h"
#include "options.h"

#define PEN_COMMAND(name, usage, about) pen_status pen_cmd_##name(const pen_options *options);
#include "commands.def"
#undef PEN_COMMAND

/* For commands that need no weights: they go on with a file that is still being downloaded. NULL is no file. */
static inline void pen_command_warn_if_cut(const pen_gguf *gguf) {
    if (gguf && pen_gguf_check_data(gguf) != PEN_OK) PEN_WARN("%s; the header is enough for this", pen_last_error());
}

#endif
