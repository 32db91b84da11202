/*
 * The commands. Each gets its parsed options, writes its result to stdout and returns; main() alone prints the error
 * text and ends the process.
 */
#ifndef PEN_COMMAND_H
#define PEN_COMMAND_H

#include "options.h"

#define PEN_COMMAND(name, usage, about) pen_status pen_cmd_##name(const pen_options *options);
#include "commands.def"
#undef PEN_COMMAND

#endif
