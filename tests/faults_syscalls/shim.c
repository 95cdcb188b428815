/* Counts calls of the C library over all threads, and lets one of them fail, end early, do half of its work
 * (and say so), or be the last one.
 *
 * IMGSNAP_FAULT="CALL N WHAT": WHAT is an errno as a number, "end", "short" or "kill". What was hit is
 * written to the file IMGSNAP_FAULT_HIT. Without IMGSNAP_FAULT, how often each was called goes to
 * IMGSNAP_FAULT_COUNTS.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define CALLS(X)                                                                                          \
    X(open64) X(openat2) X(read) X(pread64) X(write) X(pwrite64) X(fsync) X(ftruncate64) X(fallocate)                \
    X(sync_file_range) X(rename) X(renameat2) X(linkat) X(unlink) X(unlinkat) X(mkdir) X(mkdirat) X(mmap64) X(madvise)           \
    X(lseek64) X(flock) X(pthread_create)
#define NAME(name) call_##name,
enum call { CALLS(NAME) CALL_COUNT };
#define TEXT(name) #name,
static const char *const names[] = {CALLS(TEXT)};

enum what { NOTHING, ERROR, END, SHORT, KILL };
static atomic_long counts[CALL_COUNT];
static int due_call = -1, due_errno;
static long due_count;
static enum what due_what;

/* With plain system calls: what is counted here must not be. */
static void put(const char *variable, const char *text) {
    const char *path = getenv(variable);
    if (!path) return;
    long file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    syscall(SYS_write, file, text, strlen(text));
    syscall(SYS_close, file);
}

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("IMGSNAP_FAULT");
    char call[32], what[32];
    if (!text || sscanf(text, "%31s %ld %31s", call, &due_count, what) != 3) return;
    for (int i = 0; i < CALL_COUNT; i++)
        if (!strcmp(names[i], call)) due_call = i;
    due_errno = atoi(what);
    due_what = !strcmp(what, "end")     ? END
               : !strcmp(what, "short") ? SHORT
               : !strcmp(what, "kill")  ? KILL
                                        : ERROR;
}

__attribute__((destructor)) static void end(void) {
    if (getenv("IMGSNAP_FAULT")) return;
    for (int i = 0; i < CALL_COUNT; i++) {
        char line[64];
        snprintf(line, sizeof line, "%s %ld\n", names[i], atomic_load(&counts[i]));
        put("IMGSNAP_FAULT_COUNTS", line);
    }
}

/* What is to happen to this call, on a path or on a descriptor. */
static enum what now(enum call call, const char *path, int fd) {
    if (atomic_fetch_add(&counts[call], 1) + 1 != due_count || (int)call != due_call) return NOTHING;
    char link[40], place[512], line[600];
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        long length = syscall(SYS_readlinkat, AT_FDCWD, link, place, sizeof place - 1);
        place[length < 0 ? 0 : length] = 0;
        path = place;
    }
    snprintf(line, sizeof line, "%s(%d<%s>)\n", names[call], fd, path);
    put("IMGSNAP_FAULT_HIT", line);
    if (due_what == KILL) syscall(SYS_kill, getpid(), SIGKILL);
    errno = due_errno;
    return due_what;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(type, name, parameters, arguments, path, fd)      \
    type name parameters {                                     \
        if (now(call_##name, path, fd) != NOTHING) return -1;  \
        return NEXT(name) arguments;                           \
    }
#define WRAP_BYTES(name, parameters, arguments)                \
    ssize_t name parameters {                                  \
        switch (now(call_##name, NULL, fd)) {                  \
        case ERROR: return -1;                                 \
        case END: return 0;                                    \
        case SHORT: bytes -= bytes / 2; /* fall through */     \
        default: return NEXT(name) arguments;                  \
        }                                                      \
    }

WRAP_BYTES(read, (int fd, void *to, size_t bytes), (fd, to, bytes))
WRAP_BYTES(write, (int fd, const void *from, size_t bytes), (fd, from, bytes))
WRAP_BYTES(pread64, (int fd, void *to, size_t bytes, off64_t at), (fd, to, bytes, at))
WRAP_BYTES(pwrite64, (int fd, const void *from, size_t bytes, off64_t at), (fd, from, bytes, at))
WRAP(int, fsync, (int fd), (fd), NULL, fd)
WRAP(int, ftruncate64, (int fd, off64_t length), (fd, length), NULL, fd)
WRAP(int, fallocate, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes), NULL, fd)
WRAP(int, sync_file_range, (int fd, off64_t at, off64_t bytes, unsigned how), (fd, at, bytes, how), NULL, fd)
WRAP(int, rename, (const char *from, const char *to), (from, to), to, -1)
WRAP(int, renameat2, (int f, const char *from, int t, const char *to, unsigned how), (f, from, t, to, how),
     to, -1)
WRAP(int, linkat, (int f, const char *from, int t, const char *to, int how), (f, from, t, to, how), to, -1)
WRAP(int, unlink, (const char *path), (path), path, -1)
WRAP(int, unlinkat, (int f, const char *path, int how), (f, path, how), path, -1)
WRAP(int, mkdirat, (int f, const char *path, mode_t mode), (f, path, mode), path, -1)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), path, -1)
WRAP(int, madvise, (void *at, size_t bytes, int advice), (at, bytes, advice), "memory", -1)
WRAP(off64_t, lseek64, (int fd, off64_t at, int whence), (fd, at, whence), NULL, fd)
WRAP(int, flock, (int fd, int operation), (fd, operation), NULL, fd)

/* Of files only: what is mapped without one is memory. */
void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off64_t offset);
void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off64_t offset) {
    if (fd >= 0 && now(call_mmap64, NULL, fd) != NOTHING) return (void *)(intptr_t)-1;
    return NEXT(mmap64)(at, bytes, protection, flags, fd, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*begin)(void *), void *of) {
    if (now(call_pthread_create, "a thread", -1) != NOTHING) return due_errno;
    return NEXT(pthread_create)(thread, how, begin, of);
}

/* The library has no function for openat2. */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
long syscall(long number, ...) {
    long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long of[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) of[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_openat2 && now(call_openat2, (const char *)of[1], -1) != NOTHING) return -1;
    return next(number, of[0], of[1], of[2], of[3], of[4], of[5]);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if (now(call_open64, path, -1) != NOTHING) return -1;
    return NEXT(open64)(path, flags, mode);
}
