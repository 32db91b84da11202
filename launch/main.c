/*
 * The program: finds the command, runs it, prints the one line that an error deserves, and ends the process. Nothing
 * else in Penstock ends it, but for the engine when a peer is lost.
 *
 * Every rank parses the same command line. MPI is not there yet, so the launcher's own variables say which process
 * speaks; they decide nothing else.
 */
#include "command.h"
#include "help.h"
#include "version.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* When one process of a job fails, launchers kill the others: these give the first so long to say what was wrong. */
enum { LINGER_S = 3 };

/* Whether this process is the first of its job, or alone. */
static bool is_first(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *rank = getenv(names[i]);
        if (rank) return strcmp(rank, "0") == 0;
    }
    return true;
}

/* A standard stream that was closed would lend its number to the next file or socket, and results would be written into
 * that. Standard output cannot be written then. */
static void hold_standard_streams(void) {
    for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; stream++)
        if (fcntl(stream, F_GETFD) < 0) open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY);
}

static pen_status run_command(const pen_options *options) {
    switch (options->command) {
#define PEN_COMMAND(name, usage, about)                                                                                \
    case PEN_COMMAND_##name:                                                                                           \
        return pen_cmd_##name(options);
#include "commands.def"
#undef PEN_COMMAND
    case PEN_COMMAND_none:
    case PEN_COMMAND_COUNT: break;
    }
    return pen_fail(PEN_USAGE, "no command given; see penstock --help");
}

/* --help, --version and --completion; false: none of them was asked for. */
static bool show(const pen_options *options, FILE *out) {
    if (options->help)
        pen_help_print(out, options->command, pen_help_width());
    else if (options->version)
        pen_version_print(out);
    else if (options->completion)
        pen_completion_print(out);
    else
        return false;
    return true;
}

int main(int argc, char **argv) {
    hold_standard_streams();
    bool first = is_first();
    pen_options options;
    pen_status status = pen_options_parse(argc, argv, first, &options);
    if (status == PEN_OK && (options.help || options.version || options.completion)) {
        if (first) show(&options, stdout);
    } else if (status == PEN_OK) {
        status = run_command(&options);
    }
    if (fflush(stdout) != 0 && status == PEN_OK) status = pen_fail(PEN_IO, "standard output cannot be written");
    if (status != PEN_OK && first) fprintf(stderr, "penstock: %s\n", pen_last_error());
    if (status != PEN_OK && !first) sleep(LINGER_S);
    return (int)status;
}
