/*
 * The cache of profiles; see profile_cache.h. A file is written beside its name and renamed, so that ranks and runs
 * that write the same one at the same time leave a whole one.
 */
#include "profile_cache.h"

#include "log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { PATH_MOST = 2048, FILE_MOST = 16 << 20 };

/* The build: a profile measured with other kernels is worth nothing, and they change without the version. */
static uint64_t hash_program(void) {
    struct stat program;
    if (stat("/proc/self/exe", &program) != 0) return 0;
    const int64_t fields[] = {program.st_size, program.st_mtim.tv_sec, program.st_mtim.tv_nsec};
    return XXH64(fields, sizeof fields, 0);
}

static uint64_t hash_key(const pen_profile_key *key) {
    const char *device = pen_device_name(key->device);
    const int fields[] = {(int)pen_device_activations(key->device), (int)pen_device_kv_type(key->device), key->ranks,
                          key->context, pen_model_hparams(key->model)->context};
    uint64_t hash = XXH64(device, strlen(device), hash_program());
    hash = XXH64(fields, sizeof fields, hash);
    for (int u = 0; u < pen_model_unit_count(key->model); u++) {
        uint64_t class = pen_model_unit(key->model, u)->class_hash;
        hash = XXH64(&class, sizeof class, hash);
    }
    return hash;
}

/* The cache's folder; false where there is none. */
static bool find_folder(const char *given, char *folder, size_t size) {
    if (strcmp(given, "-") == 0) return false;
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length;
    if (*given)
        length = snprintf(folder, size, "%s", given);
    else if (base && *base == '/')
        length = snprintf(folder, size, "%s/penstock", base);
    else if (home && *home)
        length = snprintf(folder, size, "%s/.cache/penstock", home);
    else
        return false;
    return length > 0 && (size_t)length < size;
}

static bool find_file(const char *given, const pen_profile_key *key, char *path, size_t size) {
    char folder[PATH_MOST];
    if (!find_folder(given, folder, sizeof folder)) return false;
    int length = snprintf(path, size, "%s/profile-%016llx.json", folder, (unsigned long long)hash_key(key));
    return length > 0 && (size_t)length < size;
}

pen_profile *pen_profile_cache_load(const char *folder, const pen_profile_key *key) {
    char path[PATH_MOST];
    if (!find_file(folder, key, path, sizeof path)) return NULL;
    FILE *file = fopen(path, "re");
    if (!file) return NULL;
    struct stat info;
    pen_profile *profile = NULL;
    if (fstat(fileno(file), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0 && info.st_size <= FILE_MOST) {
        size_t size = (size_t)info.st_size;
        char *text = malloc(size);
        if (text && fread(text, 1, size, file) == size && pen_profile_decode(text, size, &profile) == PEN_OK &&
            !pen_profile_covers(profile, key->model)) {
            pen_profile_destroy(profile);
            profile = NULL;
        }
        free(text);
    }
    fclose(file);
    if (!profile) PEN_INFO("%s is not usable and will be measured again", path);
    return profile;
}

/* Makes the folders of `path` that are missing; the outcome shows when the file is opened. */
static void make_folders(const char *path) {
    char folder[PATH_MOST];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *c = folder + 1; *c; c++) {
        if (*c != '/') continue;
        *c = 0;
        mkdir(folder, 0777);
        *c = '/';
    }
}

/* Returns 0, or the errno of what failed; the file under construction is gone then. */
static int write_file(const char *path, const char *text) {
    char temporary[PATH_MOST + 16];
    snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    int descriptor = mkstemp(temporary);
    if (descriptor < 0) return errno;
    FILE *file = fdopen(descriptor, "w");
    bool written = file && fputs(text, file) >= 0;
    int error = written ? 0 : errno;
    if (file ? fclose(file) != 0 : close(descriptor) != 0) error = error ? error : errno;
    if (!error && rename(temporary, path) != 0) error = errno;
    if (error) unlink(temporary);
    return error;
}

void pen_profile_cache_store(const char *folder, const pen_profile_key *key, const pen_profile *profile) {
    char path[PATH_MOST];
    if (!find_file(folder, key, path, sizeof path)) return;
    char *text = pen_profile_encode(profile);
    if (!text) return;
    make_folders(path);
    int error = write_file(path, text);
    if (error) PEN_WARN("the profile cannot be kept for the next run: %s: %s", path, strerror(error));
    free(text);
}
