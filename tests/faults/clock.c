/* Clocks that a test can set: preloaded into a process (LD_PRELOAD).
 *
 * The wall clock may jump, as when somebody sets it; the clocks that only go forward do not follow it then. And time may
 * pass: all of these clocks go on by as much, though what waits in the kernel is not woken by it.
 *
 * CLOCK_CONTROL: the block of memory shared with the test, `struct control`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SECOND_NS = 1000000000 };

struct control {
    _Atomic int64_t jumped_ns; /* how far the wall clock was set ahead, negative: back */
    _Atomic int64_t passed_ns; /* how much time has passed beside the real one */
};

static struct control undisturbed, *control = &undisturbed;
static int (*real_clock)(clockid_t, struct timespec *);

/* Other libraries may ask for the time before `begin`. */
static int real(clockid_t which, struct timespec *moment) {
    if (!real_clock) real_clock = (__typeof__(real_clock))dlsym(RTLD_NEXT, "clock_gettime");
    return real_clock(which, moment);
}

__attribute__((constructor)) static void begin(void) {
    const char *block = getenv("CLOCK_CONTROL");
    if (!block) return;
    int fd = open(block, O_RDONLY | O_CLOEXEC);
    control = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) abort();
    close(fd);
}

static int64_t ahead_ns(clockid_t which) {
    switch (which) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
    case CLOCK_TAI:
        return control->jumped_ns + control->passed_ns;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME:
        return control->passed_ns;
    default: /* what counts the time of a processor */
        return 0;
    }
}

int clock_gettime(clockid_t which, struct timespec *moment) {
    if (real(which, moment)) return -1;
    int64_t nanoseconds = moment->tv_sec * SECOND_NS + moment->tv_nsec + ahead_ns(which);
    *moment = (struct timespec){nanoseconds / SECOND_NS, nanoseconds % SECOND_NS};
    return 0;
}

int gettimeofday(struct timeval *moment, void *zone) {
    struct timespec exact;
    (void)zone; /* obsolete, and always zero */
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    *moment = (struct timeval){exact.tv_sec, exact.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *kept) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    if (kept) *kept = exact.tv_sec;
    return exact.tv_sec;
}
