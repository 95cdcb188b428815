// What the guest of tiny-guest.sh runs to keep its disks busy. What it writes can be computed from a number, so that a
// restored disk can be held against what must be there (tests/support/guest/judge.rs has the same sums).
//
//   work files DIR KEEP MILLISECONDS      Numbered files, for ever: file n is made under another name, synced, renamed,
//                                         the folder synced, and "WROTE n" printed; file n+1 is begun after that. The file
//                                         n-KEEP is removed then. Goes on after the last one that is there.
//   work counter A B MILLISECONDS         1, 2, 3 ... to the first sector of A, synced, and then to that of B, synced.
//                                         "COUNTED n" is printed. Goes on after what A says.
//   work latency DISK BYTES PORT          Writes 4 KiB somewhere in the first BYTES, syncs, and sends one byte to PORT
//                                         ("-": none). Each second "LATENCY slowest writes slowest-of-all", the times in
//                                         microseconds of the guest's clock, which stands still while the machine is stopped.
//   work scatter DISK RUN COUNT SEED      COUNT runs of RUN bytes at random multiples of RUN, in the whole disk, then a
//                                         sync and "SCATTERED COUNT".
//   work fill DISK BYTES SEED             Noise from the start on, a sync, and "FILLED BYTES".
//
// An error ends it with one line, "FAILED what: why".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <dirent.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 512, PAGE = 4096, PIECE = 1 << 20 };

static unsigned char buffer[PIECE] __attribute__((aligned(PAGE)));

static void fail(const char *what) {
    char line[256];
    int length = snprintf(line, sizeof line, "FAILED %s: %s\n", what, strerror(errno));
    if (write(1, line, length) < 0) _exit(2);
    _exit(1);
}

static void say(const char *word, uint64_t number) {
    char line[64];
    int length = snprintf(line, sizeof line, "%s %llu\n", word, (unsigned long long)number);
    // In one piece, so that lines of several do not mix.
    if (write(1, line, length) != length) _exit(2);
}

// SplitMix64, as tests/support/random.rs.
static uint64_t next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void fill(unsigned char *to, size_t bytes, uint64_t *state) {
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t number = next(state);
        memcpy(to + at, &number, 8);
    }
}

static int open_disk(const char *path) {
    int disk = open(path, O_RDWR | O_DIRECT);
    if (disk < 0) fail(path);
    return disk;
}

static void put(int file, const void *bytes, size_t length, off_t at, const char *what) {
    ssize_t done = pwrite(file, bytes, length, at);
    if (done != (ssize_t)length) {
        if (done >= 0) errno = EIO;
        fail(what);
    }
}

static void rest(const char *milliseconds) {
    usleep(1000 * atoi(milliseconds));
}

// The last of the files here. Those up to `gone` are removed: the power may have gone before that was durable.
static uint64_t last_file(uint64_t gone) {
    uint64_t n = 0;
    DIR *names = opendir(".");
    if (!names) fail("opendir");
    for (struct dirent *name; (name = readdir(names));) {
        unsigned long long number = 0;
        if (sscanf(name->d_name, "f%llu", &number) != 1) continue;
        if (number > n) n = number;
        if (number <= gone && unlink(name->d_name)) fail("unlink");
    }
    closedir(names);
    return n;
}

static void files(const char *folder, uint64_t keep, const char *pause) {
    if (chdir(folder)) fail(folder);
    int here = open(".", O_RDONLY | O_DIRECTORY);
    if (here < 0) fail(folder);
    uint64_t n = last_file(0);
    if (n > keep) last_file(n - keep);
    for (;;) {
        char path[32];
        uint64_t state = ++n;
        // 16 to 64 KiB.
        size_t bytes = 16384 + next(&state) % 6145 * 8;
        fill(buffer, bytes, &state);
        int file = open("new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (file < 0) fail("open");
        put(file, buffer, bytes, 0, "write");
        if (fsync(file)) fail("fsync");
        if (close(file)) fail("close");
        snprintf(path, sizeof path, "f%llu", (unsigned long long)n);
        if (rename("new", path)) fail("rename");
        if (fsync(here)) fail("fsync of the folder");
        say("WROTE", n);
        if (n > keep) {
            snprintf(path, sizeof path, "f%llu", (unsigned long long)(n - keep));
            if (unlink(path)) fail("unlink");
        }
        rest(pause);
    }
}

static void counter(const char *first, const char *second, const char *pause) {
    int disks[] = {open_disk(first), open_disk(second)};
    uint64_t n;
    if (pread(disks[0], buffer, PAGE, 0) != PAGE) fail(first);
    memcpy(&n, buffer, 8);
    for (n++;; n++) {
        for (int at = 0; at < SECTOR; at += 8) memcpy(buffer + at, &n, 8);
        for (int i = 0; i < 2; i++) {
            put(disks[i], buffer, SECTOR, 0, i ? second : first);
            if (fdatasync(disks[i])) fail("fdatasync");
        }
        say("COUNTED", n);
        rest(pause);
    }
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000ull + time.tv_nsec / 1000;
}

static void latency(const char *path, uint64_t bytes, const char *port) {
    int disk = open_disk(path);
    int ticks = strcmp(port, "-") ? open(port, O_WRONLY | O_NONBLOCK) : -1;
    if (ticks < 0 && strcmp(port, "-")) fail(port);
    uint64_t state = 1, all = 0, slowest = 0, writes = 0, second = now();
    for (;;) {
        fill(buffer, PAGE, &state);
        uint64_t start = now();
        put(disk, buffer, PAGE, next(&state) % (bytes / PAGE) * PAGE, path);
        if (fdatasync(disk)) fail("fdatasync");
        uint64_t end = now();
        // The host's clock goes on while the machine is stopped: it looks when these come.
        if (ticks >= 0 && write(ticks, "t", 1) < 0 && errno != EAGAIN) fail(port);
        writes++;
        if (end - start > slowest) slowest = end - start;
        if (slowest > all) all = slowest;
        if (end - second >= 1000000) {
            char line[96];
            int length = snprintf(line, sizeof line, "LATENCY %llu %llu %llu\n", (unsigned long long)slowest,
                                  (unsigned long long)writes, (unsigned long long)all);
            if (write(1, line, length) != length) _exit(2);
            slowest = writes = 0;
            second = end;
        }
    }
}

static void scatter(const char *path, uint64_t run, uint64_t count, uint64_t state) {
    int disk = open_disk(path);
    uint64_t bytes;
    if (ioctl(disk, BLKGETSIZE64, &bytes)) fail("BLKGETSIZE64");
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = next(&state) % (bytes / run) * run;
        fill(buffer, run, &state);
        put(disk, buffer, run, at, path);
    }
    if (fdatasync(disk)) fail("fdatasync");
    say("SCATTERED", count);
}

static void fill_disk(const char *path, uint64_t bytes, uint64_t state) {
    int disk = open_disk(path);
    for (uint64_t at = 0; at < bytes; at += PIECE) {
        size_t piece = bytes - at < PIECE ? bytes - at : PIECE;
        fill(buffer, piece, &state);
        put(disk, buffer, piece, at, path);
    }
    if (fdatasync(disk)) fail("fdatasync");
    say("FILLED", bytes);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "files") && count == 5) files(words[2], strtoull(words[3], 0, 10), words[4]);
    if (!strcmp(what, "counter") && count == 5) counter(words[2], words[3], words[4]);
    if (!strcmp(what, "latency") && count == 5) latency(words[2], strtoull(words[3], 0, 10), words[4]);
    if (!strcmp(what, "scatter") && count == 6) {
        uint64_t run = strtoull(words[3], 0, 10);
        if (!run || run > PIECE || run % SECTOR) { errno = EINVAL; fail("scatter"); }
        scatter(words[2], run, strtoull(words[4], 0, 10), strtoull(words[5], 0, 10));
        return 0;
    }
    if (!strcmp(what, "fill") && count == 5) {
        fill_disk(words[2], strtoull(words[3], 0, 10), strtoull(words[4], 0, 10));
        return 0;
    }
    errno = EINVAL;
    fail(what);
}
