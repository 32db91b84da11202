/* Shell completion; see help.h. The script is a case per command with the options that the table gives it. */
#include "help.h"

#include "option_table.h"

/* The words that may follow each option which has a list of them. */
static void print_choices(FILE *out) {
    for (int i = 0; i < pen_option_count; i++) {
        const pen_option *option = &pen_option_table[i];
        if (!option->choices) continue;
        fprintf(out, "    --%s) words='", option->name);
        for (const char *c = option->choices; *c; c++) fputc(*c == '|' ? ' ' : *c, out);
        fputs("' ;;\n", out);
    }
}

/* The options that take any value: files are completed after them. */
static void print_valued(FILE *out) {
    const char *separator = "    ";
    for (int i = 0; i < pen_option_count; i++) {
        const pen_option *option = &pen_option_table[i];
        if (option->type == PEN_OPTION_FLAG || option->choices) continue;
        fprintf(out, "%s--%s", separator, option->name);
        separator = "|";
        if (option->alias) fprintf(out, "|--%s", option->alias);
        if (option->letter) fprintf(out, "|-%c", option->letter);
    }
    fputs(") return ;;\n", out);
}

static void print_words(FILE *out, pen_command command) {
    for (int i = 0; i < pen_option_count; i++)
        if (pen_option_taken(&pen_option_table[i], command)) fprintf(out, " --%s", pen_option_table[i].name);
}

void pen_completion_print(FILE *out) {
    fputs("_penstock() {\n"
          "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=\n"
          "  case $before in\n",
          out);
    print_choices(out);
    print_valued(out);
    fputs("    *) case ${COMP_WORDS[1]} in\n", out);
    for (pen_command c = 1; c < PEN_COMMAND_COUNT; c++) {
        fprintf(out, "      %s) words='", pen_command_table[c].name);
        print_words(out, c);
        fputs("' ;;\n", out);
    }
    fputs("    esac ;;\n"
          "  esac\n"
          "  if [ \"$COMP_CWORD\" = 1 ]; then words='",
          out);
    for (pen_command c = 1; c < PEN_COMMAND_COUNT; c++) fprintf(out, " %s", pen_command_table[c].name);
    print_words(out, PEN_COMMAND_none);
    fputs("'\n"
          "  elif [[ $words == *--* && $word != -* ]]; then return\n"
          "  fi\n"
          "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
          "}\n"
          "complete -o default -F _penstock penstock\n",
          out);
}
