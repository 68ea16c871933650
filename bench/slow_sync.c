/* LD_PRELOAD: a disk that takes 5 ms more for each sync.  COUNTER is a file of 8 octets that says how often it did. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t *counter = MAP_FAILED;

__attribute__((constructor)) static void begin(void) {
    int file = open(COUNTER, O_RDWR | O_CLOEXEC);
    if (file >= 0) {
        counter = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
    }
}

static int slowly(const char *name, int file) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = sync(file);
    const struct timespec latency = {0, 5 * 1000 * 1000};
    nanosleep(&latency, NULL);
    if (counter != MAP_FAILED)
        __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    return result;
}

int fsync(int file) { return slowly("fsync", file); }
int fdatasync(int file) { return slowly("fdatasync", file); }
