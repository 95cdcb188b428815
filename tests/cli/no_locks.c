/* Locks that do not work: IMGSNAP_NO_LOCKS="ERRNO flock bytes leases" names which, and how they fail; with 0,
   flock(2) succeeds, and holds back nobody, as where it is of one host alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fails(const char *what) {
    const char *text = getenv("IMGSNAP_NO_LOCKS");
    if (!text || !strstr(text, what)) return 0;
    errno = atoi(text);
    return 1;
}

int flock(int fd, int operation) {
    if (fails("flock")) return errno ? -1 : 0;
    return syscall(SYS_flock, fd, operation);
}

int fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    if ((command == F_OFD_SETLK || command == F_OFD_GETLK) && fails("bytes")) return -1;
    if (command == F_SETLEASE && fails("leases")) return -1;
    return syscall(SYS_fcntl, fd, command, argument);
}

int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));
