/* Whether tiles (Intel's AMX) can be used: exits with 0 where a product of two has come out right, in
   the first thread and in another. Some virtual machines have a processor that says that it has them,
   and a system or a host that does not let them be used: then this process ends, and no other. */
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__linux__)
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *right(void *none) {
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64}, {16, 16, 16}};
    uint16_t ones[512] __attribute__((aligned(64)));
    float sums[256] __attribute__((aligned(64)));
    for (int i = 0; i < 512; i++)
        ones[i] = 0x3F80;
    _tile_loadconfig(&shape);
    _tile_zero(0);
    _tile_loadd(1, ones, 64);
    _tile_loadd(2, ones, 64);
    for (int i = 0; i < 1000; i++)
        _tile_dpbf16ps(0, 1, 2);
    sched_yield();
    _tile_stored(0, sums, 64);
    _tile_release();
    for (int i = 0; i < 256; i++)
        if (sums[i] != 32000)
            return 0;
    return (void *)1;
}

int main(void) {
    pthread_t other;
    void *found = 0;
    if (syscall(SYS_arch_prctl, 0x1023, 18) || !right(0) || pthread_create(&other, 0, right, 0))
        return 1;
    pthread_join(other, &found);
    return !found;
}
#else
int main(void) { return 1; }
#endif
