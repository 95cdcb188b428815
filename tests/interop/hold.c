/* Stops the process at a known point: right after the N-th call of a kind that is about a certain file.
 *
 * IMGSNAP_HOLD="KIND N INODE": KIND is "lock" (F_OFD_SETLK), "lease" (F_SETLEASE) or "map" (mmap). Calls that
 * fail do not count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long calls;

static void count(const char *kind, int fd) {
    const char *hold = getenv("IMGSNAP_HOLD");
    char wanted[16];
    long number;
    unsigned long long inode;
    struct stat meta;
    int error = errno;
    if (hold && sscanf(hold, "%15s %ld %llu", wanted, &number, &inode) == 3 && !strcmp(wanted, kind)
        && !fstat(fd, &meta) && meta.st_ino == inode && atomic_fetch_add(&calls, 1) + 1 == number) {
        raise(SIGSTOP);
    }
    errno = error;
}

static int control(const char *name, int fd, int command, void *argument) {
    int (*call)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    int outcome = call(fd, command, argument);
    if (outcome >= 0 && command == F_OFD_SETLK) count("lock", fd);
    if (outcome >= 0 && command == F_SETLEASE && (long)argument != F_UNLCK) count("lease", fd);
    return outcome;
}

#define CONTROL(name)                                  \
    int name(int fd, int command, ...) {               \
        va_list rest;                                  \
        va_start(rest, command);                       \
        void *argument = va_arg(rest, void *);         \
        va_end(rest);                                  \
        return control(#name, fd, command, argument);  \
    }
CONTROL(fcntl)
CONTROL(fcntl64)

#define MAP(name)                                                                                   \
    void *name(void *at, size_t bytes, int access, int flags, int fd, off_t offset) {               \
        void *(*call)(void *, size_t, int, int, int, off_t) =                                       \
            (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, #name);               \
        void *outcome = call(at, bytes, access, flags, fd, offset);                                 \
        if (outcome != MAP_FAILED && fd >= 0) count("map", fd);                                     \
        return outcome;                                                                             \
    }
MAP(mmap)
MAP(mmap64)
