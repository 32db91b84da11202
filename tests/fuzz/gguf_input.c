/* The files of an input, in memory; see gguf_input.h. They are removed when the program ends. */
#include "gguf_input.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PARTS = 2 };

static char folder[] = "/dev/shm/penstock-fuzz-XXXXXX", paths[PARTS][sizeof folder + 32];
static int files[PARTS];

static void require(int truth, const char *what) {
    if (truth) return;
    perror(what);
    _exit(1); /* not a finding */
}

static void remove_files(void) {
    for (int i = 0; i < PARTS; i++) unlink(paths[i]);
    rmdir(folder);
}

static void make_files(void) {
    require(mkdtemp(folder) != NULL, folder);
    for (int i = 0; i < PARTS; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/m-%05d-of-%05d.gguf", folder, i + 1, PARTS);
        files[i] = open(paths[i], O_RDWR | O_CREAT, 0600);
        require(files[i] >= 0, paths[i]);
    }
    atexit(remove_files);
}

size_t gguf_begin(const uint8_t *data, size_t from, size_t size) {
    static const char magics[2][8] = {"GGUF\3", "GGUF\2"};
    size_t first = size;
    for (int i = 0; i < 2 && from < size; i++) {
        const uint8_t *found = memmem(data + from, first - from, magics[i], sizeof magics[i]);
        if (found) first = (size_t)(found - data);
    }
    return first;
}

const char *gguf_files(const uint8_t *data, size_t size) {
    if (!paths[0][0]) make_files();
    size_t cut = size ? gguf_begin(data, 1, size) : 0;
    const size_t from[] = {0, cut, size};
    for (int i = 0; i < PARTS; i++) {
        ssize_t length = (ssize_t)(from[i + 1] - from[i]);
        require(pwrite(files[i], data + from[i], (size_t)length, 0) == length, paths[i]);
        require(ftruncate(files[i], length) == 0, paths[i]);
    }
    return paths[0];
}
