/* The machine and its division; see machine.h. */
#include "machine.h"

#include <ctype.h>
#include <hwloc.h>
#include <hwloc/linux.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- Control groups --------------------------------------------------------------------------------------------- */

/* First number of a file, or −1 ("max" is no number). */
static double read_number(const char *folder, const char *name, double *second) {
    char path[1200];
    double first = -1;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    double other = -1;
    if (fscanf(file, "%lf %lf", &first, &other) < 1) first = -1;
    fclose(file);
    if (second) *second = other;
    return first;
}

/* The number behind `key` in a file of "key value" lines, or 0. */
static double read_keyed(const char *path, const char *key) {
    char name[64];
    double value, found = 0;
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    while (fscanf(file, "%63s %lf%*[^\n]", name, &value) == 2)
        if (strcmp(name, key) == 0) found = value;
    fclose(file);
    return found;
}

typedef struct cgroup_limits {
    double quota;  /* CPUs, INFINITY: none */
    double memory; /* bytes that are left, INFINITY: no limit */
} cgroup_limits;

/* What one folder says, in the files of control groups of version 2 or 1. Page cache that can be dropped is free. */
static void read_folder(const char *folder, cgroup_limits *limits) {
    double period, quota = read_number(folder, "cpu.max", &period);
    if (quota < 0) {
        quota = read_number(folder, "cpu.cfs_quota_us", NULL);
        period = read_number(folder, "cpu.cfs_period_us", NULL);
    }
    if (quota > 0 && period > 0) limits->quota = fmin(limits->quota, quota / period);

    char stat[1200];
    snprintf(stat, sizeof stat, "%s/memory.stat", folder);
    double most = read_number(folder, "memory.max", NULL);
    double used = read_number(folder, "memory.current", NULL) - read_keyed(stat, "inactive_file");
    if (most < 0) {
        most = read_number(folder, "memory.limit_in_bytes", NULL);
        used = read_number(folder, "memory.usage_in_bytes", NULL) - read_keyed(stat, "total_inactive_file");
    }
    if (most > 0) limits->memory = fmin(limits->memory, fmax(most - fmax(used, 0), 0));
}

/* A limit on any group above ours is a limit on us. Within a container our path may not be visible; its root is. */
static void read_hierarchy(const char *root, const char *path, cgroup_limits *limits) {
    char folder[1024];
    snprintf(folder, sizeof folder, "%s%s", root, path);
    for (;;) {
        read_folder(folder, limits);
        char *slash = strrchr(folder, '/');
        if (!slash || strlen(folder) <= strlen(root)) return;
        *slash = '\0';
    }
}

static cgroup_limits read_cgroups(void) {
    cgroup_limits limits = {INFINITY, INFINITY};
    FILE *file = fopen("/proc/self/cgroup", "r");
    char line[768];
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        controllers++;
        *path++ = '\0';
        if (*controllers == '\0') read_hierarchy("/sys/fs/cgroup", path, &limits);
        if (strstr(controllers, "memory")) read_hierarchy("/sys/fs/cgroup/memory", path, &limits);
        if (strstr(controllers, "cpu") && !strstr(controllers, "cpuset"))
            read_hierarchy("/sys/fs/cgroup/cpu", path, &limits);
    }
    if (file) fclose(file);
    return limits;
}

/* ---- The machine ------------------------------------------------------------------------------------------------ */

static void look_at_cores(pen_machine *machine) {
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology) != 0) return;
    hwloc_bitmap_t mask = hwloc_bitmap_alloc();
    if (mask && hwloc_topology_load(topology) == 0) {
        if (hwloc_get_cpubind(topology, mask, HWLOC_CPUBIND_PROCESS) != 0) hwloc_bitmap_fill(mask);
        hwloc_const_cpuset_t allowed = hwloc_topology_get_allowed_cpuset(topology);
        hwloc_bitmap_and(mask, mask, allowed);
        hwloc_obj_type_t kind = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
        for (hwloc_obj_t core = NULL; (core = hwloc_get_next_obj_by_type(topology, kind, core)) != NULL;) {
            if (hwloc_bitmap_intersects(core->cpuset, allowed)) machine->cores_installed++;
            /* One thread per core: its other hardware threads share the vector units that are the bottleneck. */
            for (int cpu = hwloc_bitmap_first(core->cpuset); cpu >= 0; cpu = hwloc_bitmap_next(core->cpuset, cpu)) {
                if (!hwloc_bitmap_isset(mask, (unsigned)cpu)) continue;
                if (machine->core_count == PEN_CORES_MAX) break;
                machine->numa[machine->core_count] = (int16_t)hwloc_bitmap_first(core->nodeset);
                machine->cpu[machine->core_count++] = (int16_t)cpu;
                break;
            }
        }
    }
    hwloc_bitmap_free(mask);
    hwloc_topology_destroy(topology);
}

void pen_machine_look(pen_machine *machine) {
    memset(machine, 0, sizeof *machine);
    if (gethostname(machine->host, sizeof machine->host - 1) != 0) strcpy(machine->host, "localhost");
    char boot[64] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file) {
        if (!fgets(boot, sizeof boot, file)) boot[0] = '\0';
        fclose(file);
    }
    machine->id = XXH64(machine->host, strlen(machine->host), XXH64(boot, strlen(boot), 0));
    cgroup_limits limits = read_cgroups();
    machine->quota = isfinite(limits.quota) ? limits.quota : 0;
    machine->memory = (uint64_t)fmin(1024 * read_keyed("/proc/meminfo", "MemAvailable:"), limits.memory);
    look_at_cores(machine);
}

/* The kernel knows which cores are next to a device; a whole topology with all devices would take long to look at. */
static bool find_near(const char *bus, hwloc_bitmap_t cores) {
    char path[96];
    int length = snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/local_cpus", bus);
    if (length < 0 || (size_t)length >= sizeof path) return false;
    for (char *c = path; *c; c++) *c = (char)tolower((unsigned char)*c);
    return hwloc_linux_read_path_as_cpumask(path, cores) == 0;
}

bool pen_machine_stay_near(const char *bus) {
    hwloc_topology_t topology;
    bool near = false;
    if (hwloc_topology_init(&topology) != 0) return false;
    hwloc_bitmap_t mask = hwloc_bitmap_alloc(), cores = hwloc_bitmap_alloc();
    if (mask && cores && find_near(bus, cores) && hwloc_topology_load(topology) == 0 &&
        hwloc_get_cpubind(topology, mask, HWLOC_CPUBIND_PROCESS) == 0) {
        hwloc_bitmap_and(mask, mask, cores);
        near = !hwloc_bitmap_iszero(mask) && hwloc_set_cpubind(topology, mask, HWLOC_CPUBIND_THREAD) == 0;
    }
    hwloc_bitmap_free(cores);
    hwloc_bitmap_free(mask);
    hwloc_topology_destroy(topology);
    return near;
}

/* ---- The division ----------------------------------------------------------------------------------------------- */

static bool sees(const pen_machine *machine, int cpu) {
    for (int i = 0; i < machine->core_count; i++)
        if (machine->cpu[i] == cpu) return true;
    return false;
}

/* The rank to which a core goes: of those that see it, the lowest of the ones with the fewest cores yet. */
static int rank_for(const pen_machine *const *machines, int ranks, const pen_share *shares, int cpu) {
    int best = -1;
    for (int r = 0; r < ranks; r++)
        if (sees(machines[r], cpu) && (best < 0 || shares[r].threads < shares[best].threads)) best = r;
    return best;
}

static bool same_mask(const pen_machine *a, const pen_machine *b) {
    return a->core_count == b->core_count && memcmp(a->cpu, b->cpu, (size_t)a->core_count * sizeof a->cpu[0]) == 0;
}

/* Gives a rank the i-th core of a machine. */
static void give(pen_share *share, const pen_machine *machine, int i) {
    share->numa[share->threads] = machine->numa[i];
    share->cpu[share->threads++] = machine->cpu[i];
}

/* Ranks that all see the same cores get runs of neighbours; the first ones one more where it does not come out even. */
static void deal_runs(const pen_machine *machine, int ranks, pen_share *shares) {
    for (int r = 0; r < ranks; r++) {
        int from = (int)((int64_t)machine->core_count * r / ranks);
        int to = (int)((int64_t)machine->core_count * (r + 1) / ranks);
        for (int i = from; i < to; i++) give(&shares[r], machine, i);
    }
}

static void deal_singly(const pen_machine *const *machines, int ranks, pen_share *shares) {
    bool dealt[PEN_CORES_MAX * 8] = {false};
    for (int r = 0; r < ranks; r++) {
        for (int i = 0; i < machines[r]->core_count; i++) {
            int cpu = machines[r]->cpu[i];
            if (cpu >= (int)(sizeof dealt / sizeof *dealt) || dealt[cpu]) continue;
            dealt[cpu] = true;
            give(&shares[rank_for(machines, ranks, shares, cpu)], machines[r], i);
        }
    }
}

void pen_machine_divide(const pen_machine *const *machines, int ranks, pen_share *shares) {
    bool same = true;
    double quota = INFINITY;
    for (int r = 0; r < ranks; r++) {
        memset(&shares[r], 0, sizeof shares[r]);
        shares[r].memory = machines[r]->memory;
        same = same && same_mask(machines[r], machines[0]);
        if (machines[r]->quota > 0) quota = fmin(quota, machines[r]->quota);
    }
    if (same)
        deal_runs(machines[0], ranks, shares);
    else
        deal_singly(machines, ranks, shares);

    /* One rank without a core of its own takes part of somebody's: then nobody is pinned. */
    bool enough = true;
    for (int r = 0; r < ranks; r++) enough = enough && shares[r].threads > 0;
    int by_quota = quota < PEN_CORES_MAX ? (int)fmax(quota / ranks, 1) : PEN_CORES_MAX;
    for (int r = 0; r < ranks; r++) {
        pen_share *share = &shares[r];
        if (!enough) share->threads = 1;
        if (share->threads > by_quota) share->threads = by_quota;
        share->own_cores = enough;
        share->may_spin = enough && ranks <= quota;
    }
}

void pen_share_set_threads(pen_share *share, int threads) {
    if (threads <= 0) return;
    if (threads > share->threads) share->own_cores = share->may_spin = false;
    share->threads = threads;
}

int pen_share_numa_nodes(const pen_share *share) {
    int nodes = 0;
    for (int i = 0; share->own_cores && i < share->threads; i++) {
        int before = 0;
        while (before < i && share->numa[before] != share->numa[i]) before++;
        nodes += before == i;
    }
    return nodes;
}
