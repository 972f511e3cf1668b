/* A disk that records what is done to it, or fails when it is told to. Preloaded: cc -shared -fPIC -O2 -o shim.so shim.c -ldl
 *
 * It stands before the calls of libc that change files below one directory, QILBEE_SHIM_ROOT, and leaves all others alone:
 *
 *   QILBEE_SHIM_TRACE=FILE   write every such call with its data to FILE, in the order in which they took effect
 *   QILBEE_SHIM_LEDGER=FD    what the program writes to this descriptor goes into the trace too: the trace then says
 *                            what the program had acknowledged when
 *   QILBEE_SHIM_FAIL=KIND:N:ERRNO:STICKY  the N-th call of KIND (bits, see below) fails, and with STICKY=1 all after it
 *   QILBEE_SHIM_DELAY=KIND:MICROSECONDS   every call of KIND takes that much longer
 *
 * A program that runs under it can do the same by calling the functions qilbee_shim_*, through ctypes.
 *
 * A write that fails first writes half of its bytes and says so, as disks do; the call after that one has the error.
 * A sync is recorded twice, when it begins and when it has ended: what it makes durable is what was written before it began.
 * stdio is not seen (glibc does not call write() by name for it): engines use it for their diagnostic LOG alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FILES_MAX 65536
#define EXPORT __attribute__((visibility("default")))

enum kind { WRITE = 1, SYNC = 2, RENAME = 4, CREATE = 8, UNLINK = 16, SPACE = 32, TRUNCATE = 64 };

/* One record of the trace; the names and the data follow it. Little endian, like every machine this runs on. */
struct record {
    uint64_t time_ns;
    uint64_t offset;     /* of a write; the new size of a truncate; the number of a sync */
    uint32_t file;       /* the number of the open file, counted from 1 */
    uint32_t name_bytes; /* below the root, without it */
    uint32_t data_bytes; /* the data of a write, or the second name of a rename or link */
    char operation;
    char padding[3];
};

static char root[PATH_MAX];
static size_t root_bytes;
static int trace_fd = -1, ledger_fd = -1;
static uint32_t files_opened;
static uint32_t file_of[FILES_MAX]; /* of each descriptor: 0 where it is no file of ours */
static char failing[FILES_MAX];     /* the next write to it has the error, for the last was cut short */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int fail_kinds, fail_errno, fail_sticky;
static long fail_at, fail_seen, failures;
static int delay_kinds;
static long delay_us;
static int64_t space_left = -1; /* bytes; negative: no limit */
static int64_t clock_offset_s;

#define REAL(result, name, ...)                                   \
    static result (*found_##name)(__VA_ARGS__);                   \
    static void find_##name(void) { found_##name = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name); }
/* Looked for at the first call, which may come from a constructor that runs before ours. */
#define REALLY(name) (*(found_##name != NULL ? found_##name : (find_##name(), found_##name)))
REAL(int, open, const char *, int, ...)
REAL(int, openat, int, const char *, int, ...)
REAL(int, close, int)
REAL(ssize_t, write, int, const void *, size_t)
REAL(ssize_t, pwrite, int, const void *, size_t, off_t)
REAL(int, rename, const char *, const char *)
REAL(int, unlinkat, int, const char *, int)
REAL(int, linkat, int, const char *, int, const char *, int)
REAL(int, mkdirat, int, const char *, mode_t)
REAL(int, ftruncate, int, off_t)
REAL(int, fallocate, int, int, off_t, off_t)
REAL(int, fsync, int)
REAL(int, fdatasync, int)
REAL(void *, mmap, void *, size_t, int, int, int, off_t)
REAL(int, clock_gettime, clockid_t, struct timespec *)

__attribute__((constructor)) static void load(void)
{
    const char *value = getenv("QILBEE_SHIM_ROOT");
    if (value == NULL || realpath(value, root) == NULL)
        return;
    root_bytes = strlen(root);
    if ((value = getenv("QILBEE_SHIM_TRACE")) != NULL)
        trace_fd = REALLY(open)(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((value = getenv("QILBEE_SHIM_LEDGER")) != NULL)
        ledger_fd = atoi(value);
    if ((value = getenv("QILBEE_SHIM_FAIL")) != NULL)
        sscanf(value, "%d:%ld:%d:%d", &fail_kinds, &fail_at, &fail_errno, &fail_sticky);
    if ((value = getenv("QILBEE_SHIM_DELAY")) != NULL)
        sscanf(value, "%d:%ld", &delay_kinds, &delay_us);
}

/* What a program under the shim may call. */

EXPORT void qilbee_shim_fail(int kinds, long at, int error, int sticky)
{
    pthread_mutex_lock(&lock);
    fail_kinds = kinds, fail_at = at, fail_errno = error, fail_sticky = sticky, fail_seen = failures = 0;
    memset(failing, 0, sizeof failing);
    pthread_mutex_unlock(&lock);
}

EXPORT long qilbee_shim_seen(void) { return fail_seen; }
EXPORT long qilbee_shim_failures(void) { return failures; }
EXPORT void qilbee_shim_delay(int kinds, long microseconds) { delay_kinds = kinds, delay_us = microseconds; }
EXPORT void qilbee_shim_space(int64_t bytes) { space_left = bytes; }
EXPORT int64_t qilbee_shim_space_left(void) { return space_left; }
EXPORT void qilbee_shim_clock(int64_t seconds) { clock_offset_s = seconds; }

/* Which file it is, and what to write down of it. */

static int ours(int fd) { return fd >= 0 && fd < FILES_MAX && file_of[fd]; }

/* The name below the root of a path given to a call, or NULL where it is not below it. */
static const char *name_below_root(int directory, const char *path, char *buffer)
{
    if (!root_bytes || path == NULL)
        return NULL;
    char joined[2 * PATH_MAX];
    size_t length = 0;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
        ssize_t got = readlink(link, joined, PATH_MAX - 1);
        if (got < 0)
            return NULL;
        length = (size_t)got;
        joined[length++] = '/';
    }
    if (strlen(path) >= PATH_MAX)
        return NULL;
    strcpy(joined + length, path);
    size_t to = 0;
    for (const char *from = joined; *from && to < PATH_MAX - 1;) { /* without "//", "/./" and a slash at the end */
        if (from[0] == '/' && (from[1] == '/' || from[1] == 0))
            from++;
        else if (from[0] == '/' && from[1] == '.' && (from[2] == '/' || from[2] == 0))
            from += 2;
        else
            buffer[to++] = *from++;
    }
    buffer[to] = 0;
    if (strncmp(buffer, root, root_bytes) != 0 || (buffer[root_bytes] != '/' && buffer[root_bytes] != 0))
        return NULL;
    return buffer + root_bytes + (buffer[root_bytes] == '/');
}

/* Called with the lock held, so that the order of the records is that of the calls. */
static void note(char operation, uint32_t file, uint64_t offset, const char *name, const void *data, size_t bytes)
{
    if (trace_fd < 0)
        return;
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    struct record record = {.operation = operation, .file = file, .offset = offset};
    record.time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    record.name_bytes = name == NULL ? 0 : (uint32_t)strlen(name);
    record.data_bytes = (uint32_t)bytes;
    struct iovec parts[3] = {
        {&record, sizeof record}, {(void *)name, record.name_bytes}, {(void *)data, bytes}};
    int saved = errno;
    syscall(SYS_writev, trace_fd, parts, 3);
    errno = saved;
}

/* Whether this call fails; errno then says why. The lock is held. */
static int fails(int kind)
{
    if (!(fail_kinds & kind))
        return 0;
    fail_seen++;
    if (fail_seen < fail_at || (!fail_sticky && fail_seen > fail_at))
        return 0;
    failures++;
    errno = fail_errno;
    return 1;
}

static void delayed(int kind)
{
    if (delay_kinds & kind) {
        struct timespec wait = {delay_us / 1000000, delay_us % 1000000 * 1000};
        syscall(SYS_nanosleep, &wait, NULL);
    }
}

static void give_back(const struct stat *status)
{
    if (space_left >= 0 && S_ISREG(status->st_mode))
        space_left += status->st_size;
}

/* The calls. Each takes the lock around itself and its record, but a sync, during which others go on. */

static int opened(int directory, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = name_below_root(directory, path, buffer);
    if (name == NULL)
        return REALLY(openat)(directory, path, flags, mode);
    int changes = flags & (O_CREAT | O_TRUNC);
    if (changes)
        delayed(CREATE);
    pthread_mutex_lock(&lock);
    int fd = -1;
    if (!changes || !fails(CREATE)) {
        struct stat before;
        int existed = fstatat(directory, path, &before, 0) == 0;
        fd = REALLY(openat)(directory, path, flags, mode);
        if (fd >= 0 && fd < FILES_MAX) {
            file_of[fd] = ++files_opened;
            failing[fd] = 0;
            if (existed && flags & O_TRUNC)
                give_back(&before);
            /* c: made or emptied, o: only opened */
            int emptied = flags & O_TRUNC && existed && before.st_size;
            note(!existed ? 'c' : 'o', file_of[fd], 0, name, NULL, 0);
            if (emptied)
                note('t', file_of[fd], 0, NULL, NULL, 0);
        }
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE_OF(flags, mode)                         \
    mode_t mode = 0;                                 \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {         \
        va_list rest;                                \
        va_start(rest, flags);                       \
        mode = va_arg(rest, mode_t);                 \
        va_end(rest);                                \
    }
EXPORT int open(const char *path, int flags, ...) { MODE_OF(flags, mode) return opened(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { MODE_OF(flags, mode) return opened(AT_FDCWD, path, flags, mode); }
EXPORT int openat(int at, const char *path, int flags, ...) { MODE_OF(flags, mode) return opened(at, path, flags, mode); }
EXPORT int openat64(int at, const char *path, int flags, ...) { MODE_OF(flags, mode) return opened(at, path, flags, mode); }
EXPORT int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

EXPORT int close(int fd)
{
    if (ours(fd)) {
        pthread_mutex_lock(&lock);
        file_of[fd] = 0;
        pthread_mutex_unlock(&lock);
    }
    return REALLY(close)(fd);
}

/* offset < 0: where the file is. */
static ssize_t wrote(int fd, const void *data, size_t bytes, off_t offset)
{
    if (fd == ledger_fd && trace_fd >= 0) {
        pthread_mutex_lock(&lock);
        note('l', 0, 0, NULL, data, bytes);
        ssize_t done = REALLY(write)(fd, data, bytes);
        pthread_mutex_unlock(&lock);
        return done;
    }
    if (!ours(fd))
        return offset < 0 ? REALLY(write)(fd, data, bytes) : REALLY(pwrite)(fd, data, bytes, offset);
    delayed(WRITE);
    pthread_mutex_lock(&lock);
    ssize_t done = -1;
    if (failing[fd]) {
        failing[fd] = 0;
        errno = fail_errno;
    } else {
        if (fails(WRITE)) {
            failing[fd] = 1;
            bytes /= 2;
        }
        struct stat before;
        fstat(fd, &before);
        off_t at = offset >= 0 ? offset : (fcntl(fd, F_GETFL) & O_APPEND) ? before.st_size : lseek(fd, 0, SEEK_CUR);
        off_t fits = space_left < 0 ? LONG_MAX : (at < before.st_size ? before.st_size - at : 0) + space_left;
        if (bytes && fits == 0) {
            failing[fd] = 0;
            errno = ENOSPC;
        } else if (bytes == 0 && failing[fd]) {
            failing[fd] = 0;
            errno = fail_errno;
        } else {
            if ((off_t)bytes > fits)
                bytes = (size_t)fits;
            done = offset < 0 ? REALLY(write)(fd, data, bytes) : REALLY(pwrite)(fd, data, bytes, offset);
            if (done > 0) {
                note('w', file_of[fd], (uint64_t)at, NULL, data, (size_t)done);
                if (space_left >= 0 && at + done > before.st_size)
                    space_left -= at + done - before.st_size;
            }
        }
    }
    pthread_mutex_unlock(&lock);
    return done;
}

static ssize_t wrote_parts(int fd, const struct iovec *parts, int count, off_t offset)
{
    ssize_t total = 0;
    for (int each = 0; each < count; each++) {
        ssize_t done = wrote(fd, parts[each].iov_base, parts[each].iov_len, offset < 0 ? -1 : offset + total);
        if (done < 0)
            return total ? total : -1;
        total += done;
        if ((size_t)done < parts[each].iov_len)
            break;
    }
    return total;
}

EXPORT ssize_t write(int fd, const void *data, size_t bytes) { return wrote(fd, data, bytes, -1); }
EXPORT ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) { return wrote(fd, data, bytes, at); }
EXPORT ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t at) { return wrote(fd, data, bytes, at); }
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) { return wrote_parts(fd, parts, count, -1); }
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return wrote_parts(fd, parts, count, at); }
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) { return wrote_parts(fd, parts, count, at); }

static int synced(int fd, int (*real)(int))
{
    if (!ours(fd))
        return real(fd);
    pthread_mutex_lock(&lock);
    static uint64_t syncs;
    uint64_t number = ++syncs;
    uint32_t file = file_of[fd];
    int failed = fails(SYNC), error = errno;
    if (!failed)
        note('s', file, number, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    delayed(SYNC);
    if (failed) {
        errno = error;
        return -1;
    }
    int result = real(fd);
    pthread_mutex_lock(&lock);
    if (result == 0)
        note('S', file, number, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int fsync(int fd) { return synced(fd, REALLY(fsync)); }
EXPORT int fdatasync(int fd) { return synced(fd, REALLY(fdatasync)); }

/* 'r' rename, 'k' link, 'u' unlink, 'd' rmdir, 'm' mkdir: what changes names. */

static int renamed(int from_at, const char *from, int to_at, const char *to)
{
    char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
    const char *old = name_below_root(from_at, from, from_buffer), *new = name_below_root(to_at, to, to_buffer);
    if (old == NULL || new == NULL)
        return renameat(from_at, from, to_at, to);
    delayed(RENAME);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!fails(RENAME)) {
        struct stat replaced;
        int replaces = fstatat(to_at, to, &replaced, AT_SYMLINK_NOFOLLOW) == 0 && replaced.st_nlink == 1;
        result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, 0);
        if (result == 0) {
            note('r', 0, 0, old, new, strlen(new));
            if (replaces)
                give_back(&replaced);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int rename(const char *from, const char *to)
{
    char buffer[PATH_MAX];
    return name_below_root(AT_FDCWD, from, buffer) ? renamed(AT_FDCWD, from, AT_FDCWD, to) : REALLY(rename)(from, to);
}
EXPORT int renameat(int from_at, const char *from, int to_at, const char *to)
{
    char buffer[PATH_MAX];
    if (name_below_root(from_at, from, buffer))
        return renamed(from_at, from, to_at, to);
    return (int)syscall(SYS_renameat2, from_at, from, to_at, to, 0);
}

static int unlinked(int at, const char *path, int flags)
{
    char buffer[PATH_MAX];
    const char *name = name_below_root(at, path, buffer);
    if (name == NULL)
        return REALLY(unlinkat)(at, path, flags);
    delayed(UNLINK);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!fails(UNLINK)) {
        struct stat before;
        int last = fstatat(at, path, &before, AT_SYMLINK_NOFOLLOW) == 0 && before.st_nlink == 1;
        result = REALLY(unlinkat)(at, path, flags);
        if (result == 0) {
            note(flags & AT_REMOVEDIR ? 'd' : 'u', 0, 0, name, NULL, 0);
            if (last)
                give_back(&before);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
EXPORT int unlinkat(int at, const char *path, int flags) { return unlinked(at, path, flags); }
EXPORT int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int remove(const char *path)
{
    struct stat status;
    return unlinked(AT_FDCWD, path, lstat(path, &status) == 0 && S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0);
}

EXPORT int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
    const char *old = name_below_root(from_at, from, from_buffer), *new = name_below_root(to_at, to, to_buffer);
    if (old == NULL || new == NULL)
        return REALLY(linkat)(from_at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    int result = fails(RENAME) ? -1 : REALLY(linkat)(from_at, from, to_at, to, flags);
    if (result == 0)
        note('k', 0, 0, old, new, strlen(new));
    pthread_mutex_unlock(&lock);
    return result;
}
EXPORT int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

EXPORT int mkdirat(int at, const char *path, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = name_below_root(at, path, buffer);
    if (name == NULL)
        return REALLY(mkdirat)(at, path, mode);
    pthread_mutex_lock(&lock);
    int result = fails(CREATE) ? -1 : REALLY(mkdirat)(at, path, mode);
    if (result == 0)
        note('m', 0, 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

EXPORT int ftruncate(int fd, off_t size)
{
    if (!ours(fd))
        return REALLY(ftruncate)(fd, size);
    pthread_mutex_lock(&lock);
    struct stat before;
    fstat(fd, &before);
    int result = fails(TRUNCATE) ? -1 : REALLY(ftruncate)(fd, size);
    if (result == 0) {
        note('t', file_of[fd], (uint64_t)size, NULL, NULL, 0);
        if (space_left >= 0 && size < before.st_size)
            space_left += before.st_size - size;
    }
    pthread_mutex_unlock(&lock);
    return result;
}
EXPORT int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

EXPORT int fallocate(int fd, int mode, off_t at, off_t bytes)
{
    if (!ours(fd))
        return REALLY(fallocate)(fd, mode, at, bytes);
    pthread_mutex_lock(&lock);
    int result = -1;
    struct stat before;
    fstat(fd, &before);
    if (space_left >= 0 && at + bytes - before.st_size > space_left) {
        errno = ENOSPC;
    } else if (!fails(SPACE)) {
        result = REALLY(fallocate)(fd, mode, at, bytes);
        if (result == 0 && !(mode & FALLOC_FL_KEEP_SIZE) && at + bytes > before.st_size) {
            note('t', file_of[fd], (uint64_t)(at + bytes), NULL, NULL, 0);
            if (space_left >= 0)
                space_left -= at + bytes - before.st_size;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}
EXPORT int fallocate64(int fd, int mode, off_t at, off_t bytes) { return fallocate(fd, mode, at, bytes); }
EXPORT int posix_fallocate(int fd, off_t at, off_t bytes) { return fallocate(fd, 0, at, bytes) == 0 ? 0 : errno; }
EXPORT int posix_fallocate64(int fd, off_t at, off_t bytes) { return posix_fallocate(fd, at, bytes); }

/* A file written through memory would escape us. No engine of ours does; if one begins to, it is told so at once. */
EXPORT void *mmap(void *start, size_t bytes, int protection, int flags, int fd, off_t at)
{
    if (ours(fd) && protection & PROT_WRITE && flags & MAP_SHARED) {
        errno = ENODEV;
        return MAP_FAILED;
    }
    return REALLY(mmap)(start, bytes, protection, flags, fd, at);
}
EXPORT void *mmap64(void *start, size_t bytes, int protection, int flags, int fd, off_t at)
{
    return mmap(start, bytes, protection, flags, fd, at);
}

EXPORT int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = REALLY(clock_gettime)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += clock_offset_s;
    return result;
}
