/* --help; see help.h. */
#include "help.h"

#include "option_table.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LABEL_COLUMNS = 34, PAGE_COLUMNS = 100, LEAST_COLUMNS = 60, MOST_COLUMNS = 120 };

int pen_help_width(void) {
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    int width = PAGE_COLUMNS;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        width = size.ws_col;
    else if (columns && atoi(columns) > 0)
        width = atoi(columns);
    return width < LEAST_COLUMNS ? LEAST_COLUMNS : width > MOST_COLUMNS ? MOST_COLUMNS : width;
}

/* Columns that a UTF-8 string of one-column characters takes. */
static int columns(const char *text, size_t bytes) {
    int count = 0;
    for (size_t i = 0; i < bytes; i++) count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

/* Prints the words of `text` from column `at` on, in lines of `width` columns that begin at `indent`. */
static void print_wrapped(FILE *out, const char *text, int at, int indent, int width) {
    while (*text) {
        size_t bytes = strcspn(text, " ");
        int word = columns(text, bytes);
        if (at > indent && at + 1 + word > width) {
            fprintf(out, "\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            fputc(' ', out);
            at++;
        }
        fwrite(text, 1, bytes, out);
        at += word;
        text += bytes + strspn(text + bytes, " ");
    }
    fputc('\n', out);
}

static void print_entry(FILE *out, const char *label, const char *text, int width) {
    int used = columns(label, strlen(label));
    fputs(label, out);
    if (used >= LABEL_COLUMNS) {
        fputc('\n', out);
        used = 0;
    }
    fprintf(out, "%*s", LABEL_COLUMNS - used, "");
    print_wrapped(out, text, LABEL_COLUMNS, LABEL_COLUMNS, width);
}

static void print_option(FILE *out, const pen_option *option, int width) {
    char label[160], text[512];
    int used = option->letter ? snprintf(label, sizeof label, "  -%c, --%s", option->letter, option->name)
                              : snprintf(label, sizeof label, "      --%s", option->name);
    if (option->alias) used += snprintf(label + used, sizeof label - (size_t)used, ", --%s", option->alias);
    if (option->argument) snprintf(label + used, sizeof label - (size_t)used, " %s", option->argument);

    used = snprintf(text, sizeof text, "%s", option->help);
    const char *separator = ": ";
    for (const char *c = option->choices; c && *c; separator = ", ") {
        int length = (int)strcspn(c, "|");
        used += snprintf(text + used, sizeof text - (size_t)used, "%s%.*s", separator, length, c);
        c += length + (c[length] == '|');
    }
    if (option->fallback) snprintf(text + used, sizeof text - (size_t)used, " (default: %s)", option->fallback);
    print_entry(out, label, text, width);
}

static void print_group(FILE *out, pen_option_group group, pen_command command, int width) {
    static const char *const titles[] = {
#define X(name, title) title,
        PEN_OPTION_GROUPS(X)
#undef X
    };
    bool titled = false;
    for (int i = 0; i < pen_option_count; i++) {
        const pen_option *option = &pen_option_table[i];
        if (option->group != group || !pen_option_taken(option, command)) continue;
        if (!titled) fprintf(out, "\n%s\n", titles[group]);
        titled = true;
        print_option(out, option, width);
    }
}

void pen_help_print(FILE *out, pen_command command, int width) {
    const pen_command_info *info = &pen_command_table[command];
    if (command == PEN_COMMAND_none) {
        fputs("Usage: penstock COMMAND MODEL [OPTION]…\n"
              "       mpirun -np STAGES penstock COMMAND MODEL [OPTION]…\n\n",
              out);
        print_wrapped(
            out,
            "Runs a language model as a pipeline: measures the layers, solves the split over the processes that "
            "mpirun started (one, without mpirun) and keeps every stage busy.",
            0, 0, width);
        fputs("\nCommands\n", out);
        for (pen_command c = 1; c < PEN_COMMAND_COUNT; c++) {
            char label[160];
            snprintf(label, sizeof label, "  %s %s", pen_command_table[c].name, pen_command_table[c].usage);
            print_entry(out, label, pen_command_table[c].about, width);
        }
    } else {
        fprintf(out, "Usage: penstock %s %s [OPTION]…\n\n", info->name, info->usage);
        print_wrapped(out, info->about, 0, 0, width);
    }
    for (pen_option_group group = 0; group < PEN_GROUP_COUNT; group++) print_group(out, group, command, width);
    fputc('\n', out);
    print_wrapped(
        out,
        command == PEN_COMMAND_none
            ? "penstock COMMAND --help shows the options of a command."
            : "Every option can also come from the environment: --max-tokens 8 is PENSTOCK_MAX_TOKENS=8, and a "
              "flag is 1 or 0. The command line wins.",
        0, 0, width);
}
