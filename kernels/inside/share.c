/* Tells programs how much of the machine is theirs: preloaded into the dynamically linked programs of a kernel.
 *
 * Without it, what counts CPUs or memory sees the whole node, and starts as many threads. The share is read from
 * the control group (v2 or v1), else from CPU_LIMIT and MEM_LIMIT in the environment. Answered are sysconf,
 * get_nprocs and friends, sysinfo, the affinity of the own process, and reads of /proc/meminfo,
 * /proc/cpuinfo and /proc/stat, as they are when opened. Nothing else is touched, and whatever goes wrong the
 * system's own answer is given. SHOW_HOST_RESOURCES=1 in the environment turns it off.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#ifndef CGROUPS
#define CGROUPS "/sys/fs/cgroup"
#endif
#define MOST (1 << 20)

typedef unsigned long long number;

#define REAL(name) (real_##name ? real_##name : (real_##name = (void *)dlsym(RTLD_NEXT, #name)))
#define PUBLIC __attribute__((visibility("default")))

static int off(void) {
    static int known = -1;
    if (known < 0) {
        const char *word = getenv("SHOW_HOST_RESOURCES");
        known = word && *word && strcmp(word, "0") != 0;
    }
    return known;
}

/* A whole small file; the calls go past our own open. */
static long slurp(const char *path, char *into, long size) {
    int saved = errno, file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    long length = 0, got;
    if (file < 0) {
        errno = saved;
        return -1;
    }
    while (length < size - 1 && (got = read(file, into + length, size - 1 - length)) != 0) {
        if (got < 0) {
            if (errno == EINTR)
                continue;
            length = -1;
            break;
        }
        length += got;
    }
    close(file);
    errno = saved;
    if (length >= 0)
        into[length] = 0;
    return length;
}

static const char *digits(const char *text, number *value) {
    while (*text == ' ' || *text == '\t')
        text++;
    if (*text < '0' || *text > '9')
        return NULL;
    for (*value = 0; *text >= '0' && *text <= '9'; text++)
        *value = *value * 10 + (*text - '0');
    return text;
}

/* The number in a file; 0 when there is none ("max", "-1", no such file). */
static number in_file(const char *path) {
    char text[64];
    number value;
    return slurp(path, text, sizeof text) > 0 && digits(text, &value) ? value : 0;
}

/* The number behind NAME at the beginning of a line. */
static number in_table(const char *table, const char *name) {
    size_t length = strlen(name);
    for (const char *line = table; line; line = strchr(line, '\n')) {
        number value;
        line += *line == '\n';
        if (strncmp(line, name, length) == 0 && line[length] == ' ' && digits(line + length, &value))
            return value;
    }
    return 0;
}

/* CPU_LIMIT is a decimal number; in thousandths. */
static number thousandths(const char *text) {
    number whole = 0, part = 0, scale = 1000;
    if (!text || !(text = digits(text, &whole)))
        return 0;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9' && scale > 1; text++)
            part += (*text - '0') * (scale /= 10);
    return whole * 1000 + part;
}

/* How many CPUs' worth of time, rounded up; 0: no limit. */
static int cpus(void) {
    static int known = -1;
    if (known >= 0)
        return known;
    char text[64];
    number quota = 0, period = 0;
    const char *rest;
    if (slurp(CGROUPS "/cpu.max", text, sizeof text) > 0) {
        if ((rest = digits(text, &quota)))
            digits(rest, &period);
    } else {
        quota = in_file(CGROUPS "/cpu/cpu.cfs_quota_us");
        period = in_file(CGROUPS "/cpu/cpu.cfs_period_us");
    }
    if (!quota || !period)
        quota = thousandths(getenv("CPU_LIMIT")), period = 1000;
    return known = off() || !quota ? 0 : (int)((quota + period - 1) / period);
}

static number host_memory(void) {
    char text[256], *line;
    number value;
    if (slurp("/proc/meminfo", text, sizeof text) > 0 && (line = strstr(text, "MemTotal:")) &&
        digits(line + 9, &value))
        return value * 1024;
    return 0;
}

/* Bytes of memory; 0: no limit. */
static number memory(void) {
    static number known;
    static int asked;
    if (asked)
        return known;
    number limit = in_file(CGROUPS "/memory.max"), host;
    const char *word;
    if (!limit)
        limit = in_file(CGROUPS "/memory/memory.limit_in_bytes");
    host = host_memory();
    if ((!limit || limit >= host) && (word = getenv("MEM_LIMIT")))
        if (!digits(word, &limit))
            limit = 0;
    known = off() || limit >= host ? 0 : limit;
    asked = 1;
    return known;
}

struct usage {
    number used, cache, active_file, inactive_file, active_anon, inactive_anon, anon, mapped, shmem;
};

static struct usage usage(void) {
    char table[8192] = "";
    struct usage u = {0};
    int second = slurp(CGROUPS "/memory.stat", table, sizeof table) > 0;
    if (!second && slurp(CGROUPS "/memory/memory.stat", table, sizeof table) <= 0)
        return u;
    u.used = in_file(second ? CGROUPS "/memory.current" : CGROUPS "/memory/memory.usage_in_bytes");
#define OF(two, one) in_table(table, second ? two : "total_" one)
    u.cache = OF("file", "cache");
    u.active_file = OF("active_file", "active_file");
    u.inactive_file = OF("inactive_file", "inactive_file");
    u.active_anon = OF("active_anon", "active_anon");
    u.inactive_anon = OF("inactive_anon", "inactive_anon");
    u.anon = OF("anon", "rss");
    u.mapped = OF("file_mapped", "mapped_file");
    u.shmem = OF("shmem", "shmem");
#undef OF
    return u;
}

static number least(number a, number b) { return a < b ? a : b; }

static number unused(number limit, const struct usage *u) { return limit - least(limit, u->used); }

static number available(number limit, const struct usage *u) {
    return limit - least(limit, u->used - least(u->used, u->inactive_file));
}

/* ---- counts ---- */

static long (*real_sysconf)(int);
static int (*real_get_nprocs)(void), (*real_get_nprocs_conf)(void);
static long (*real_get_phys_pages)(void), (*real_get_avphys_pages)(void);
static int (*real_sysinfo)(struct sysinfo *);

static long fewer(long host) {
    int ours = cpus();
    return ours && ours < host ? ours : host;
}

static long pages(long host, int free) {
    number limit = memory();
    if (!limit || !REAL(sysconf))
        return host;
    struct usage u = {0};
    if (free)
        u = usage();
    return (long)((free ? available(limit, &u) : limit) / (number)real_sysconf(_SC_PAGESIZE));
}

PUBLIC long sysconf(int name) {
    if (!REAL(sysconf)) {
        errno = EINVAL;
        return -1;
    }
    long host = real_sysconf(name);
    switch (name) {
    case _SC_NPROCESSORS_CONF:
    case _SC_NPROCESSORS_ONLN:
        return fewer(host);
    case _SC_PHYS_PAGES:
        return pages(host, 0);
    case _SC_AVPHYS_PAGES:
        return pages(host, 1);
    }
    return host;
}

PUBLIC int get_nprocs(void) { return REAL(get_nprocs) ? (int)fewer(real_get_nprocs()) : 1; }

PUBLIC int get_nprocs_conf(void) {
    return REAL(get_nprocs_conf) ? (int)fewer(real_get_nprocs_conf()) : 1;
}

PUBLIC long get_phys_pages(void) {
    return REAL(get_phys_pages) ? pages(real_get_phys_pages(), 0) : -1;
}

PUBLIC long get_avphys_pages(void) {
    return REAL(get_avphys_pages) ? pages(real_get_avphys_pages(), 1) : -1;
}

PUBLIC int sysinfo(struct sysinfo *info) {
    int result = REAL(sysinfo) ? real_sysinfo(info) : (int)syscall(SYS_sysinfo, info);
    number limit = result == 0 ? memory() : 0;
    if (!limit)
        return result;
    struct usage u = usage();
    unsigned long unit = info->mem_unit ? info->mem_unit : 1;
    info->totalram = limit / unit;
    info->freeram = unused(limit, &u) / unit;
    info->sharedram = u.shmem / unit;
    info->bufferram = 0;
    info->totalswap = info->freeswap = info->totalhigh = info->freehigh = 0;
    return 0;
}

/* ---- affinity ---- */

static int (*real_sched_getaffinity)(pid_t, size_t, cpu_set_t *);
static int (*real_pthread_getaffinity_np)(pthread_t, size_t, cpu_set_t *);

/* Keep as many CPUs as are ours. Not the first ones: sessions that pin their threads shall not meet there. */
static void thin_out(size_t size, cpu_set_t *set) {
    int ours = cpus(), there = CPU_COUNT_S(size, set);
    if (!ours || ours >= there)
        return;
    const char *name = getenv("PERIJOVE_SESSION_ID");
    unsigned hash = 2166136261u;
    for (; name && *name; name++)
        hash = (hash ^ (unsigned char)*name) * 16777619u;
    int skip = (int)(hash % (unsigned)there), seen = 0;
    for (int cpu = 0; cpu < (int)size * 8; cpu++) {
        if (!CPU_ISSET_S(cpu, size, set))
            continue;
        if ((seen++ - skip + there) % there >= ours)
            CPU_CLR_S(cpu, size, set);
    }
}

PUBLIC int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    if (!REAL(sched_getaffinity)) {
        errno = ENOSYS;
        return -1;
    }
    int result = real_sched_getaffinity(pid, size, set);
    if (result == 0 && (pid == 0 || pid == getpid()))
        thin_out(size, set);
    return result;
}

PUBLIC int pthread_getaffinity_np(pthread_t thread, size_t size, cpu_set_t *set) {
    if (!REAL(pthread_getaffinity_np))
        return ENOSYS;
    int result = real_pthread_getaffinity_np(thread, size, set);
    if (result == 0)
        thin_out(size, set);
    return result;
}

/* ---- files ---- */

static int (*real_open)(const char *, int, ...), (*real_open64)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...), (*real_openat64)(int, const char *, int, ...);
static FILE *(*real_fopen)(const char *, const char *), *(*real_fopen64)(const char *, const char *);

static char *meminfo_line(char *to, const char *name, size_t length, const char *rest, number limit,
                          const struct usage *u) {
    const struct {
        const char *name;
        number bytes;
    } ours[] = {
        {"MemTotal", limit},
        {"MemFree", unused(limit, u)},
        {"MemAvailable", available(limit, u)},
        {"Buffers", 0},
        {"Cached", u->cache},
        {"SwapCached", 0},
        {"Active", u->active_anon + u->active_file},
        {"Inactive", u->inactive_anon + u->inactive_file},
        {"Active(anon)", u->active_anon},
        {"Inactive(anon)", u->inactive_anon},
        {"Active(file)", u->active_file},
        {"Inactive(file)", u->inactive_file},
        {"Unevictable", 0},
        {"Mlocked", 0},
        {"SwapTotal", 0},
        {"SwapFree", 0},
        {"Dirty", 0},
        {"Writeback", 0},
        {"AnonPages", u->anon},
        {"Mapped", u->mapped},
        {"Shmem", u->shmem},
        {"KReclaimable", 0},
        {"Slab", 0},
        {"SReclaimable", 0},
        {"SUnreclaim", 0},
        {"AnonHugePages", 0},
        {"ShmemHugePages", 0},
        {"FileHugePages", 0},
    };
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (strlen(ours[i].name) == length && memcmp(ours[i].name, name, length) == 0)
            return to + snprintf(to, 128, "%s: %15llu kB\n", ours[i].name, ours[i].bytes / 1024);
    return to + snprintf(to, 128, "%.*s%.64s\n", (int)length, name, rest);
}

/* The file as we tell it, in place of what `from` holds; 0 when it is to be left alone. */
static long told_meminfo(char *from, char *to) {
    number limit = memory();
    if (!limit)
        return 0;
    struct usage u = usage();
    char *start = to;
    for (char *line = from, *next; line && *line; line = next) {
        if ((next = strchr(line, '\n')))
            *next++ = 0;
        char *colon = strchr(line, ':');
        if (colon)
            to = meminfo_line(to, line, (size_t)(colon - line), colon, limit, &u);
    }
    return to - start;
}

/* Without the blocks of processors beyond our number. */
static long told_cpuinfo(char *from, char *to) {
    int ours = cpus(), seen = 0, keep = 1;
    char *start = to;
    if (!ours)
        return 0;
    for (char *line = from, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        size_t length = next ? (size_t)(++next - line) : strlen(line);
        if (strncmp(line, "processor", 9) == 0)
            keep = ++seen <= ours;
        if (keep) {
            memcpy(to, line, length);
            to += length;
        }
        if (*line == '\n')
            keep = 1;
    }
    return to - start;
}

static long told_stat(char *from, char *to) {
    int ours = cpus(), seen = 0;
    char *start = to;
    if (!ours)
        return 0;
    for (char *line = from, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        size_t length = next ? (size_t)(++next - line) : strlen(line);
        int one = strncmp(line, "cpu", 3) == 0 && line[3] >= '0' && line[3] <= '9';
        if (one && ++seen > ours)
            continue;
        memcpy(to, line, length);
        to += length;
    }
    return to - start;
}

/* A file in memory with what we tell of `path`; -1 when the real one is to be opened. */
static int told(const char *path, int flags) {
    long (*teller)(char *, char *) = NULL;
    if (!path || strncmp(path, "/proc/", 6) != 0 || off())
        return -1;
    if (strcmp(path, "/proc/meminfo") == 0)
        teller = told_meminfo;
    else if (strcmp(path, "/proc/cpuinfo") == 0)
        teller = told_cpuinfo;
    else if (strcmp(path, "/proc/stat") == 0)
        teller = told_stat;
    if (!teller || (flags & (O_ACCMODE | O_PATH | O_DIRECTORY | O_CREAT)) != O_RDONLY)
        return -1;
    int saved = errno, file = -1;
    char *from = mmap(NULL, 2 * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from != MAP_FAILED) {
        char *to = from + MOST;
        long had = slurp(path, from, MOST);
        /* Nothing grows by more than a few bytes a line; a file near the bound is left alone. */
        long length = had > 0 && had < MOST / 2 ? teller(from, to) : 0;
        if (length > 0)
            file = (int)syscall(SYS_memfd_create, path + 6, flags & O_CLOEXEC ? 1u : 0u);
        if (file >= 0 && (write(file, to, (size_t)length) != length || lseek(file, 0, SEEK_SET) != 0)) {
            close(file);
            file = -1;
        }
        munmap(from, 2 * MOST);
    }
    errno = saved;
    return file;
}

#define MODE(flags)                                                                                \
    unsigned mode = 0;                                                                             \
    if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) {                               \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, unsigned);                                                             \
        va_end(rest);                                                                              \
    }

#define OPEN(name, extra)                                                                          \
    PUBLIC int name(const char *path, int flags, ...) {                                            \
        MODE(flags)                                                                                \
        int file = told(path, flags);                                                              \
        if (file >= 0)                                                                             \
            return file;                                                                           \
        if (REAL(name))                                                                            \
            return real_##name(path, flags, mode);                                                 \
        return (int)syscall(SYS_openat, AT_FDCWD, path, (flags) | (extra), mode);                  \
    }

#define OPENAT(name, extra)                                                                        \
    PUBLIC int name(int folder, const char *path, int flags, ...) {                                \
        MODE(flags)                                                                                \
        int file = told(path, flags);                                                              \
        if (file >= 0)                                                                             \
            return file;                                                                           \
        if (REAL(name))                                                                            \
            return real_##name(folder, path, flags, mode);                                         \
        return (int)syscall(SYS_openat, folder, path, (flags) | (extra), mode);                    \
    }

#define FOPEN(name)                                                                                \
    PUBLIC FILE *name(const char *path, const char *mode) {                                        \
        int file = mode && mode[0] == 'r' && !strchr(mode, '+')                                    \
                       ? told(path, O_RDONLY | (strchr(mode, 'e') ? O_CLOEXEC : 0))                \
                       : -1;                                                                       \
        if (file >= 0) {                                                                           \
            FILE *stream = fdopen(file, "r");                                                      \
            if (stream)                                                                            \
                return stream;                                                                     \
            close(file);                                                                           \
        }                                                                                          \
        return REAL(name) ? real_##name(path, mode) : NULL;                                        \
    }

OPEN(open, 0)
OPEN(open64, O_LARGEFILE)
OPENAT(openat, 0)
OPENAT(openat64, O_LARGEFILE)
FOPEN(fopen)
FOPEN(fopen64)

/* What fortified programs call; they never give a mode. */
PUBLIC int __open_2(const char *path, int flags) { return open(path, flags); }
PUBLIC int __open64_2(const char *path, int flags) { return open64(path, flags); }
PUBLIC int __openat_2(int folder, const char *path, int flags) { return openat(folder, path, flags); }
PUBLIC int __openat64_2(int folder, const char *path, int flags) {
    return openat64(folder, path, flags);
}
