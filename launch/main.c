/* (being written) */
#include <stdio.h>

int main(void) {
    fprintf(stderr, "penstock: no command is there yet\n");
    return 2;
}
