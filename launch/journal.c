/* The output of a batch and its journal; see journal.h. */
#include "journal.h"

#include "clock.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { CHUNK = 1 << 20, PATH_MOST = 4096, LOCK_POLL_NS = 50 * 1000000 };

/* Both are written as they are in memory. */
typedef struct header {
    char magic[24];
    pen_journal_key key;
    uint64_t check; /* of what stands before it */
} header;

/* Of a line of the output; or where `line` is 0, of the loss of the replica `length`. */
typedef struct record {
    uint64_t line, length;
    uint64_t hash;  /* of the output line */
    uint64_t check; /* of what stands before it, in this journal */
} record;

static const char magic[24] = "penstock batch 1\n";

struct pen_journal {
    char output_path[PATH_MOST], path[PATH_MOST];
    int output, file; /* −1: not open */
    header header;
    pen_journal_options options;
    int64_t count, losses; /* records of either kind */
    uint64_t output_bytes; /* that are proven */
    uint8_t *has;          /* a bit per line of the input */
    bool foreign;          /* the output has another line in place of the first that the journal tells of */
};

/* ---- Files ------------------------------------------------------------------------------------------------------- */

static pen_status fail_at(const char *path) {
    int error = errno;
    bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    return pen_fail(PEN_IO, "%s: %s%s", path, strerror(error),
                    full ? "; when there is room, the same command goes on" : "");
}

static pen_status write_all(int file, const char *path, const void *data, size_t bytes) {
    const char *at = data;
    while (bytes > 0) {
        ssize_t wrote = write(file, at, bytes);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return fail_at(path);
        at += wrote;
        bytes -= (size_t)wrote;
    }
    return PEN_OK;
}

/* Reads up to `bytes` bytes, fewer only at the file's end. */
static pen_status read_all(int file, const char *path, void *data, size_t bytes, size_t *got) {
    for (*got = 0; *got < bytes;) {
        ssize_t more = read(file, (char *)data + *got, bytes - *got);
        if (more < 0 && errno == EINTR) continue;
        if (more < 0) return fail_at(path);
        if (more == 0) break;
        *got += (size_t)more;
    }
    return PEN_OK;
}

/* Makes a name in the file's folder safe, or its absence. Not all file systems can do that. */
static void sync_folder(const char *path) {
    char folder[PATH_MOST];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file < 0) return;
    fsync(file);
    close(file);
}

static bool exists(const char *path) {
    struct stat about;
    return lstat(path, &about) == 0;
}

/* ---- The lock ---------------------------------------------------------------------------------------------------- */

static void beat(const pen_journal *journal) {
    if (journal->options.beat) journal->options.beat(journal->options.beat_context);
}

static pen_status lock(pen_journal *journal) {
    int64_t deadline = pen_clock_ns() + (int64_t)(journal->options.patience_s * 1e9);
    for (bool told = false; flock(journal->file, LOCK_EX | LOCK_NB) != 0; told = true) {
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK) {
            PEN_WARN("%s cannot be locked (%s): nothing keeps another process from writing %s", journal->path,
                     strerror(errno), journal->output_path);
            return PEN_OK;
        }
        if (pen_clock_ns() > deadline)
            return pen_fail(PEN_USAGE, "%s: another process is writing this output", journal->path);
        if (!told) fprintf(stderr, "%s: waiting for another process that has it\n", journal->path);
        beat(journal);
        pen_clock_sleep_until(pen_clock_ns() + LOCK_POLL_NS);
    }
    return PEN_OK;
}

/* Opens and locks the journal that has the name then: whoever had the lock may have removed it at last. */
static pen_status open_locked(pen_journal *journal) {
    for (;;) {
        struct stat own, named;
        journal->file = open(journal->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (journal->file < 0) return fail_at(journal->path);
        PEN_TRY(lock(journal));
        if (fstat(journal->file, &own) != 0) return fail_at(journal->path);
        if (stat(journal->path, &named) == 0 && own.st_ino == named.st_ino && own.st_dev == named.st_dev) return PEN_OK;
        close(journal->file);
    }
}

/* ---- Beginning --------------------------------------------------------------------------------------------------- */

static uint64_t check_of_record(const pen_journal *journal, const record *r) {
    return XXH3_64bits_withSeed(r, offsetof(record, check), journal->header.check);
}

static pen_status open_output(pen_journal *journal, int flags) {
    struct stat about;
    journal->output = open(journal->output_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | flags, 0666);
    if (journal->output < 0 || fstat(journal->output, &about) != 0) return fail_at(journal->output_path);
    if (!S_ISREG(about.st_mode))
        return pen_fail(PEN_USAGE, "%s: is no regular file, and a batch must be able to read its output again",
                        journal->output_path);
    return PEN_OK;
}

/* The journal is made safe before there is an output: an output without a journal is complete. */
static pen_status begin(pen_journal *journal) {
    if (ftruncate(journal->file, 0) != 0 || lseek(journal->file, 0, SEEK_SET) < 0) return fail_at(journal->path);
    PEN_TRY(write_all(journal->file, journal->path, &journal->header, sizeof journal->header));
    if (fsync(journal->file) != 0) return fail_at(journal->path);
    sync_folder(journal->path);
    return open_output(journal, O_EXCL);
}

/* ---- Going on ---------------------------------------------------------------------------------------------------- */

/* Whether the next line of the output is what the record says. */
static pen_status prove(pen_journal *journal, const record *r, void *chunk, XXH3_state_t *hash, bool *proven) {
    XXH3_64bits_reset(hash);
    uint64_t left = r->length;
    size_t got = 1;
    while (left > 0 && got > 0) {
        PEN_TRY(read_all(journal->output, journal->output_path, chunk, left < CHUNK ? (size_t)left : CHUNK, &got));
        XXH3_64bits_update(hash, chunk, got);
        left -= got;
        beat(journal);
    }
    *proven = left == 0 && XXH3_64bits_digest(hash) == r->hash;
    journal->foreign = left == 0 && !*proven && journal->count == 0;
    return PEN_OK;
}

static void take(pen_journal *journal, const record *r) {
    if (r->line == 0) {
        journal->losses++;
        return;
    }
    journal->has[(r->line - 1) / 8] |= (uint8_t)(1U << (r->line - 1) % 8);
    journal->output_bytes += r->length;
    journal->count++;
}

static bool may_follow(const pen_journal *journal, const record *r) {
    if (r->check != check_of_record(journal, r) || r->line > (uint64_t)journal->options.lines) return false;
    return r->line == 0 || !pen_journal_has(journal, (int64_t)r->line);
}

/* Reads both files as far as they prove each other. */
static pen_status read_records(pen_journal *journal, void *chunk, XXH3_state_t *hash) {
    int copy = dup(journal->file); /* shares its position, which is behind the header */
    FILE *records = copy < 0 ? NULL : fdopen(copy, "rb");
    if (!records) return fail_at(journal->path);
    record r;
    pen_status status = PEN_OK;
    for (bool proven = true; status == PEN_OK && proven;) {
        proven = fread(&r, sizeof r, 1, records) == 1 && may_follow(journal, &r);
        if (proven && r.line > 0) status = prove(journal, &r, chunk, hash, &proven);
        if (status == PEN_OK && proven) take(journal, &r);
    }
    fclose(records);
    return status;
}

static pen_status go_on(pen_journal *journal) {
    PEN_TRY(open_output(journal, 0));
    void *chunk = malloc(CHUNK);
    XXH3_state_t *hash = XXH3_createState();
    pen_status status =
        chunk && hash ? read_records(journal, chunk, hash) : pen_fail(PEN_NO_MEMORY, "no memory to read a journal");
    free(chunk);
    XXH3_freeState(hash);
    PEN_TRY(status);
    if (journal->foreign) /* a torn end is ours to cut, but not this */
        return pen_fail(PEN_USAGE, "%s: is not the output that %s tells of; remove the journal and give another -o",
                        journal->output_path, journal->path);
    off_t end = (off_t)(sizeof(header) + (size_t)(journal->count + journal->losses) * sizeof(record));
    if (ftruncate(journal->output, (off_t)journal->output_bytes) != 0 || lseek(journal->output, 0, SEEK_END) < 0)
        return fail_at(journal->output_path);
    if (ftruncate(journal->file, end) != 0 || lseek(journal->file, 0, SEEK_END) < 0) return fail_at(journal->path);
    return PEN_OK;
}

static pen_status check_key(const pen_journal *journal, const header *found) {
    const pen_journal_key *had = &found->key, *have = &journal->header.key;
    const char *what = NULL;
    if (memcmp(found->magic, magic, sizeof magic) != 0)
        return pen_fail(PEN_USAGE, "%s: is no journal of penstock batch; give another -o", journal->path);
    if (XXH3_64bits(found, offsetof(header, check)) != found->check)
        return pen_fail(PEN_BAD_INPUT, "%s: is damaged; remove it and %s to begin anew", journal->path,
                        journal->output_path);
    if (had->input_bytes != have->input_bytes || had->input_hash != have->input_hash) what = "another input";
    if (had->settings != have->settings) what = "other options";
    if (had->model != have->model) what = "another model";
    if (!what) return PEN_OK;
    return pen_fail(PEN_USAGE, "%s: was begun with %s; remove it and %s to begin anew, or give another -o",
                    journal->path, what, journal->output_path);
}

/* ---- Opening ----------------------------------------------------------------------------------------------------- */

static pen_status open_files(pen_journal *journal) {
    header found = {0};
    size_t got;
    PEN_TRY(open_locked(journal));
    PEN_TRY(read_all(journal->file, journal->path, &found, sizeof found, &got));
    if (got == sizeof found) {
        PEN_TRY(check_key(journal, &found));
        return go_on(journal);
    }
    if (memcmp(found.magic, magic, got < sizeof magic ? got : sizeof magic) != 0)
        return pen_fail(PEN_USAGE, "%s: is no journal of penstock batch; give another -o", journal->path);
    /* Nobody got further than to begin it, so that it has no output. */
    if (!exists(journal->output_path)) return begin(journal);
    unlink(journal->path);
    return pen_fail(PEN_USAGE, "%s: exists, and no journal says that it is unfinished; remove it or give another -o",
                    journal->output_path);
}

static pen_status fill(const char *output, const pen_journal_key *key, pen_journal *journal) {
    int length = snprintf(journal->path, sizeof journal->path, "%s.journal", output);
    if (length >= (int)sizeof journal->path) return pen_fail(PEN_USAGE, "the output's name is too long");
    strcpy(journal->output_path, output);
    memcpy(journal->header.magic, magic, sizeof magic);
    journal->header.key = *key;
    journal->header.check = XXH3_64bits(&journal->header, offsetof(header, check));
    journal->has = calloc((size_t)journal->options.lines / 8 + 1, 1);
    return journal->has
               ? PEN_OK
               : pen_fail(PEN_NO_MEMORY, "no memory for a batch of %lld lines", (long long)journal->options.lines);
}

pen_status pen_journal_open(const char *output, const pen_journal_key *key, const pen_journal_options *options,
                            pen_journal **out) {
    *out = NULL;
    pen_journal *journal = calloc(1, sizeof *journal);
    if (!journal) return pen_fail(PEN_NO_MEMORY, "no memory for a journal");
    journal->output = journal->file = -1;
    journal->options = *options;
    pen_status status = fill(output, key, journal);
    if (status == PEN_OK) status = open_files(journal);
    if (status == PEN_OK)
        *out = journal;
    else
        pen_journal_close(journal);
    return status;
}

void pen_journal_close(pen_journal *journal) {
    if (!journal) return;
    if (journal->output >= 0) close(journal->output);
    if (journal->file >= 0) close(journal->file);
    free(journal->has);
    free(journal);
}

/* ---- In use ------------------------------------------------------------------------------------------------------ */

int64_t pen_journal_count(const pen_journal *journal) {
    return journal->count;
}

bool pen_journal_has(const pen_journal *journal, int64_t number) {
    return journal->has[(number - 1) / 8] >> (number - 1) % 8 & 1;
}

pen_status pen_journal_write(pen_journal *journal, int64_t number, const char *text, size_t length) {
    record r = {.line = (uint64_t)number, .length = length, .hash = XXH3_64bits(text, length)};
    r.check = check_of_record(journal, &r);
    PEN_TRY(write_all(journal->output, journal->output_path, text, length));
    PEN_TRY(write_all(journal->file, journal->path, &r, sizeof r));
    take(journal, &r);
    return PEN_OK;
}

pen_status pen_journal_note_loss(pen_journal *journal, int replica) {
    record r = {.length = (uint64_t)replica};
    r.check = check_of_record(journal, &r);
    PEN_TRY(write_all(journal->file, journal->path, &r, sizeof r));
    take(journal, &r);
    return PEN_OK;
}

int64_t pen_journal_losses(const pen_journal *journal) {
    return journal->losses;
}

pen_status pen_journal_finish(pen_journal *journal) {
    if (fsync(journal->output) != 0) return fail_at(journal->output_path);
    sync_folder(journal->output_path);
    if (unlink(journal->path) != 0) return fail_at(journal->path);
    sync_folder(journal->path);
    return PEN_OK;
}
