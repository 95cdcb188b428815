/* The time of day is what IMGSNAP_CLOCK says, in seconds since 1970; how long something takes stays true. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int is_set(time_t *seconds) {
    const char *text = getenv("IMGSNAP_CLOCK");
    if (text) *seconds = atoll(text);
    return text != NULL;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int is_day = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    if (!is_day || !is_set(&time->tv_sec)) return syscall(SYS_clock_gettime, clock, time);
    time->tv_nsec = 0;
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    if (!is_set(&time->tv_sec)) return syscall(SYS_gettimeofday, time, zone);
    time->tv_usec = 0;
    return 0;
}

time_t time(time_t *where) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
