/*
 * types_dump TYPE COLS: the dequantiser as a filter, for types_compare.py. Rows of COLS values in GGUF layout come in
 * on stdin, their f32 values go out on stdout.
 */
#include "types.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    pen_type type;
    int cols = argc == 3 ? atoi(argv[2]) : 0;
    if (cols < 1 || pen_type_by_name(argv[1], &type) != 0 || cols % pen_type_get(type)->block_values) {
        fprintf(stderr, "usage: types_dump TYPE COLS\n");
        return 1;
    }
    size_t row_bytes = pen_type_row_bytes(type, cols), size = sizeof(float) * (size_t)cols;
    void *row = malloc(row_bytes);
    float *values = malloc(size);
    if (!row || !values) return 1;
    while (fread(row, row_bytes, 1, stdin) == 1) {
        pen_type_dequantize_row(type, row, cols, values);
        if (fwrite(values, size, 1, stdout) != 1) return 1;
    }
    free(row);
    free(values);
    return fflush(stdout) != 0;
}
