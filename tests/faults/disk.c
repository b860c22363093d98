/* A disk that is watched and spoiled: preloaded into a process (LD_PRELOAD), for the files below one folder.
 *
 * It writes every write, sync, truncation and change of a directory, and everything sent over TCP, into one log, in one
 * order. The order is what makes the log worth something: what changes a file is logged after it was done, a sync at its
 * beginning and after it returned, but what is sent is logged before it leaves. So an answer that depends on a sync never
 * stands before it in the log, and one that stands behind it was not sent before.
 *
 * And it lets calls fail, take long, or end the process, as a block of memory shared with the test says.
 *
 * DISK_FOLDER: the folder, absolute. DISK_LOG: the log. DISK_CONTROL: the shared block, `struct control`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, OPEN = 8, NAME = 16, READ = 32 };

struct control {
    _Atomic int32_t what;    /* which calls are meant: the bits above, 0 for none */
    _Atomic int32_t error;   /* what they fail with: an errno, or 0 */
    _Atomic int64_t after;   /* how many of them pass first */
    _Atomic int64_t times;   /* how many of them are met then */
    _Atomic int64_t seen;    /* how many there were; counted here */
    _Atomic int32_t half;    /* a write that fails does half of its work first */
    _Atomic int32_t deadly;  /* the process ends with SIGKILL instead */
    _Atomic int32_t delay_us; /* they take so much longer, whether they fail or not */
    char ending[20];         /* only files whose names end so; empty for all */
};

struct entry {
    char kind;
    char spare[3];
    int32_t fd;
    int64_t place;
    int64_t result;
    int64_t length; /* of what follows */
};

enum { FDS = 65536, NAMES = 120 };
static struct control unspoiled, *control = &unspoiled;
static char folder[4096], names[FDS][NAMES]; /* the path of each open file, below the folder; "" for what is none of ours */
static size_t folder_length;
static int log_fd = -1;

#define REAL(name) ((__typeof__(name) *)real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void note(char kind, int fd, int64_t place, int64_t result, const void *data, size_t length) {
    if (log_fd < 0) return;
    int kept = errno;
    struct entry entry = {.kind = kind, .fd = fd, .place = place, .result = result, .length = (int64_t)length};
    struct iovec parts[2] = {{&entry, sizeof entry}, {(void *)data, length}};
    if (syscall(SYS_writev, log_fd, parts, length ? 2 : 1) != (long)(sizeof entry + length)) abort();
    errno = kept;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DISK_FOLDER"), *log = getenv("DISK_LOG"), *block = getenv("DISK_CONTROL");
    if (!path) return;
    folder_length = strlen(strcpy(folder, path));
    if (block) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, block, O_RDWR | O_CLOEXEC, 0);
        control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (control == MAP_FAILED) abort();
        syscall(SYS_close, fd);
    }
    if (log) {
        int low = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        log_fd = fcntl(low, F_DUPFD_CLOEXEC, 1000); /* out of the way of whoever counts descriptors */
        syscall(SYS_close, low);
        note('X', getpid(), 0, 0, NULL, 0);
    }
}

/* The path below the folder, or NULL. */
static const char *ours(const char *path) {
    if (!folder_length || strncmp(path, folder, folder_length)) return NULL;
    if (path[folder_length] == 0) return ".";
    return path[folder_length] == '/' && strlen(path) - folder_length <= NAMES ? path + folder_length + 1 : NULL;
}

static const char *name_of(int fd) { return fd >= 0 && fd < FDS ? names[fd] : ""; }

static int ends(const char *name, const char *ending) {
    size_t length = strlen(name), wanted = strlen(ending);
    return length >= wanted && !strcmp(name + length - wanted, ending);
}

/* What SQLite shares between its connections is in memory and lost with the power, whatever was written. */
static int kept(const char *name) { return *name && !ends(name, "-shm"); }

/* The errno that a call is to fail with, 0 for none. */
static int spoiled(int what, const char *name) {
    if (!*name || !(control->what & what) || !ends(name, control->ending)) return 0;
    int64_t passed = atomic_fetch_add(&control->seen, 1) - control->after;
    if (passed < 0 || passed >= control->times) return 0;
    if (control->delay_us) usleep((useconds_t)control->delay_us);
    if (control->deadly) syscall(SYS_kill, getpid(), SIGKILL);
    return control->error;
}

#define FAIL_IF_SPOILED(what, name) \
    do { \
        int spoil_error = spoiled(what, name); \
        if (spoil_error) { errno = spoil_error; return -1; } \
    } while (0)

static int opened(int fd, const char *path, int flags) {
    struct stat status;
    const char *name = ours(path);
    if (fd < 0 || fd >= FDS || !name || syscall(SYS_fstat, fd, &status)) return fd;
    strcpy(names[fd], name);
    if (kept(name)) note('O', fd, flags, S_ISDIR(status.st_mode), name, strlen(name));
    return fd;
}

#define OPENING(function, before, given) \
    va_list more; \
    va_start(more, flags); \
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, int) : 0; \
    va_end(more); \
    const char *name = ours(path); \
    if (name) FAIL_IF_SPOILED(OPEN, name); \
    return opened(REAL(function) given, path, flags);

int open(const char *path, int flags, ...) { OPENING(open, , (path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPENING(open64, , (path, flags, mode)) }
int openat(int at, const char *path, int flags, ...) { OPENING(openat, , (at, path, flags, mode)) }
int openat64(int at, const char *path, int flags, ...) { OPENING(openat64, , (at, path, flags, mode)) }

static int is_tcp(int fd) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    return log_fd >= 0 && !getsockname(fd, (struct sockaddr *)&address, &length) &&
           (address.ss_family == AF_INET || address.ss_family == AF_INET6);
}

int close(int fd) {
    if (*name_of(fd)) names[fd][0] = 0;
    else if (is_tcp(fd)) note('C', fd, 0, 0, NULL, 0);
    return REAL(close)(fd);
}

/* A write to one of our files: it may fail, perhaps after half of it. */
static ssize_t written(int fd, const void *data, size_t length, off64_t place) {
    int error = spoiled(WRITE, name_of(fd));
    if (error && control->half && length > 1) { error = 0; length /= 2; }
    if (error) { errno = error; return -1; }
    ssize_t done = place < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, place);
    if (done > 0 && place < 0) place = lseek64(fd, 0, SEEK_CUR) - done;
    if (done > 0 && kept(name_of(fd))) note('W', fd, place, done, data, (size_t)done);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t place) {
    return *name_of(fd) ? written(fd, data, length, place) : REAL(pwrite64)(fd, data, length, place);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t place) { return pwrite64(fd, data, length, place); }

ssize_t pread64(int fd, void *data, size_t length, off64_t place) {
    FAIL_IF_SPOILED(READ, name_of(fd));
    return REAL(pread64)(fd, data, length, place);
}
ssize_t pread(int fd, void *data, size_t length, off_t place) { return pread64(fd, data, length, place); }

/* Something sent: logged before it leaves, and what did not leave is taken back. */
#define SENDING(data, length, send) \
    do { \
        if (!is_tcp(fd)) return send; \
        note('Q', fd, 0, 0, data, length); \
        ssize_t sent = send; \
        if (sent != (ssize_t)(length)) note('q', fd, 0, sent < 0 ? 0 : sent, NULL, 0); \
        return sent; \
    } while (0)

ssize_t write(int fd, const void *data, size_t length) {
    if (*name_of(fd)) return written(fd, data, length, -1);
    SENDING(data, length, REAL(write)(fd, data, length));
}
ssize_t send(int fd, const void *data, size_t length, int flags) {
    SENDING(data, length, REAL(send)(fd, data, length, flags));
}

static ssize_t several(int fd, const struct iovec *parts, size_t count, const struct msghdr *message, int flags) {
    size_t length = 0;
    for (size_t i = 0; i < count; i++) length += parts[i].iov_len;
    char *data = malloc(length + 1), *end = data;
    for (size_t i = 0; i < count; i++) end = mempcpy(end, parts[i].iov_base, parts[i].iov_len);
    note('Q', fd, 0, 0, data, length);
    free(data);
    ssize_t sent = message ? REAL(sendmsg)(fd, message, flags) : REAL(writev)(fd, parts, (int)count);
    if (sent != (ssize_t)length) note('q', fd, 0, sent < 0 ? 0 : sent, NULL, 0);
    return sent;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return is_tcp(fd) ? several(fd, parts, (size_t)count, NULL, 0) : REAL(writev)(fd, parts, count);
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (!is_tcp(fd)) return REAL(sendmsg)(fd, message, flags);
    return several(fd, message->msg_iov, message->msg_iovlen, message, flags);
}

#define SYNCING(function) \
    do { \
        const char *name = name_of(fd); \
        if (kept(name)) note('s', fd, 0, 0, NULL, 0); \
        int error = spoiled(SYNC, name), result = error ? -1 : REAL(function)(fd); \
        if (error) errno = error; \
        if (kept(name)) note('S', fd, 0, result, NULL, 0); \
        return result; \
    } while (0)

int fsync(int fd) { SYNCING(fsync); }
int fdatasync(int fd) { SYNCING(fdatasync); }

int ftruncate64(int fd, off64_t length) {
    FAIL_IF_SPOILED(TRUNCATE, name_of(fd));
    int result = REAL(ftruncate64)(fd, length);
    if (!result && kept(name_of(fd))) note('T', fd, length, 0, NULL, 0);
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int renamed(char kind, const char *from, const char *to, int (*change)(const char *, const char *)) {
    const char *old = ours(from), *new = ours(to);
    if (!old || !new) return change(from, to);
    FAIL_IF_SPOILED(NAME, new);
    int result = change(from, to);
    char both[2 * NAMES + 2];
    if (!result) note(kind, 0, 0, 0, both, (size_t)(stpcpy(stpcpy(both, old) + 1, new) - both));
    return result;
}

int rename(const char *from, const char *to) { return renamed('R', from, to, REAL(rename)); }
int link(const char *from, const char *to) { return renamed('L', from, to, REAL(link)); }

int unlink(const char *path) {
    const char *name = ours(path);
    if (name) FAIL_IF_SPOILED(NAME, name);
    int result = REAL(unlink)(path);
    if (!result && name && kept(name)) note('U', 0, 0, 0, name, strlen(name));
    return result;
}

int mkdir(const char *path, mode_t mode) {
    const char *name = ours(path);
    if (name) FAIL_IF_SPOILED(NAME, name);
    int result = REAL(mkdir)(path, mode);
    if (!result && name) note('M', 0, 0, 0, name, strlen(name));
    return result;
}
