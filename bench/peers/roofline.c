/* What this machine can do at best: bytes read from memory a second, and multiply-adds of the
 * widest bfloat16 instruction it has. Prints one JSON object. Operands stay in registers, so the
 * second is a bound that no kernel passes.
 *
 * gcc -O3 -march=native -fopenmp roofline.c -o roofline; OMP_NUM_THREADS=2 ./roofline [MiB]
 */
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REPEATS = 7, ROUNDS = 200000, CHAINS = 12 };

static uint64_t read_all(const uint64_t *words, size_t count) {
    uint64_t sums[8] = {0}; /* one chain each, which the compiler turns into vectors */
    for (size_t i = 0; i < count; i += 64)
        for (size_t lane = 0; lane < 64; lane++) sums[lane & 7] ^= words[i + lane];
    uint64_t all = 0;
    for (int lane = 0; lane < 8; lane++) all ^= sums[lane];
    return all;
}

static double bandwidth(size_t bytes, double *best) {
    uint64_t *words = aligned_alloc(4096, bytes);
    size_t count = bytes / sizeof *words;
    if (!words) exit(1);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < count; i++) words[i] = i;
    double sum = 0;
    volatile uint64_t sink = 0;
    *best = 0;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        double begun = omp_get_wtime();
        uint64_t all = 0;
#pragma omp parallel reduction(^ : all)
        {
            size_t part = count / omp_get_num_threads() / 64 * 64;
            all ^= read_all(words + part * omp_get_thread_num(), part);
        }
        sink ^= all;
        double rate = bytes / (omp_get_wtime() - begun);
        sum += rate;
        if (rate > *best) *best = rate;
    }
    free(words);
    return sum / REPEATS;
}

#if defined(__AMX_BF16__)
#define UNIT "AMX bf16"
#define FLOPS_A_ROUND (4.0 * 2 * 16 * 16 * 32)
static const uint8_t *tile_config(void) {
    static _Alignas(64) uint8_t config[64];
    config[0] = 1;
    for (int tile = 0; tile < 8; tile++) {
        config[16 + 2 * tile] = 64; /* bytes a row */
        config[48 + tile] = 16;     /* rows */
    }
    return config;
}
static void work(void) {
    /* By hand: GCC 12's intrinsic lets the stores above be dropped. */
    __asm__ volatile("ldtilecfg (%0)" ::"r"(tile_config()) : "memory");
    for (int i = 0; i < ROUNDS; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
#else
#if defined(__AVX512BF16__)
#define UNIT "AVX-512 bf16"
#define FLOPS_A_ROUND (2.0 * 32 * CHAINS)
typedef __m512 vector;
#define ZERO _mm512_setzero_ps()
#define STEP(sum) _mm512_dpbf16_ps(sum, (__m512bh)one, (__m512bh)one)
#elif defined(__AVX512F__)
#define UNIT "AVX-512 f32"
#define FLOPS_A_ROUND (2.0 * 16 * CHAINS)
typedef __m512 vector;
#define ZERO _mm512_setzero_ps()
#define STEP(sum) _mm512_fmadd_ps(one, one, sum)
#else
#define UNIT "AVX2 f32"
#define FLOPS_A_ROUND (2.0 * 8 * CHAINS)
typedef __m256 vector;
#define ZERO _mm256_setzero_ps()
#define STEP(sum) _mm256_fmadd_ps(one, one, sum)
#endif
static void work(void) {
    vector sums[CHAINS], one = ZERO;
    for (int chain = 0; chain < CHAINS; chain++) sums[chain] = ZERO;
    for (int i = 0; i < ROUNDS; i++) {
        __asm__ volatile("" : "+v"(one)); /* unknown to the compiler: nothing can be folded */
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; chain++) sums[chain] = STEP(sums[chain]);
    }
    for (int chain = 0; chain < CHAINS; chain++) __asm__ volatile("" ::"v"(sums[chain]));
}
#endif

static double peak(double *best) {
    double sum = 0;
    *best = 0;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        double begun = omp_get_wtime();
#pragma omp parallel
        work();
        double spent = omp_get_wtime() - begun;
        double rate = FLOPS_A_ROUND * ROUNDS * omp_get_max_threads() / spent;
        sum += rate;
        if (rate > *best) *best = rate;
    }
    return sum / REPEATS;
}

int main(int count, char **words) {
    size_t bytes = (size_t)(count > 1 ? atoi(words[1]) : 1024) << 20;
    double best_bandwidth, best_peak;
#if defined(__AMX_BF16__)
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 2; /* ARCH_REQ_XCOMP_PERM, tile data */
#endif
    double mean_bandwidth = bandwidth(bytes, &best_bandwidth), mean_peak = peak(&best_peak);
    printf("{\"unit\": \"%s\", \"threads\": %d, "
           "\"bandwidth_bytes_per_s\": %.0f, \"best_bandwidth_bytes_per_s\": %.0f, "
           "\"peak_flops_per_s\": %.0f, \"best_peak_flops_per_s\": %.0f}\n",
           UNIT, omp_get_max_threads(), mean_bandwidth, best_bandwidth, mean_peak, best_peak);
    return 0;
}
