/* Kernels in plain C, for any processor. */

#define TARGET
#define NAME(function) function##_generic
#include "_native_loops.h"

static void sums32_generic(const float *x, int64_t n, float shift, float tiny, Sums *sums) {
    double first = 0, second = 0, about = (double)shift;
    float lowest = INFINITY, highest = -INFINITY;
    int32_t small = 0, subnormal = 0;
#pragma omp simd reduction(+ : first, second, small) reduction(min : lowest) reduction(max : highest) reduction(| : subnormal)
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - about;
        first += d;
        second += d * d;
        lowest = x[i] < lowest ? x[i] : lowest;
        highest = x[i] > highest ? x[i] : highest;
        int32_t is_small = fabsf(x[i]) < tiny;
        small += is_small;
        subnormal |= is_small & (x[i] != 0);
    }
    *sums = (Sums){first, second, (double)lowest, (double)highest, small, subnormal};
}

static void sums64_generic(const double *x, int64_t n, double shift, double tiny, Sums *sums) {
    double first = 0, second = 0, lowest = INFINITY, highest = -INFINITY;
    int64_t small = 0, subnormal = 0;
#pragma omp simd reduction(+ : first, second, small) reduction(min : lowest) reduction(max : highest) reduction(| : subnormal)
    for (int64_t i = 0; i < n; i++) {
        double d = x[i] - shift;
        first += d;
        second += d * d;
        lowest = x[i] < lowest ? x[i] : lowest;
        highest = x[i] > highest ? x[i] : highest;
        int64_t is_small = fabs(x[i]) < tiny;
        small += is_small;
        subnormal |= is_small & (x[i] != 0);
    }
    *sums = (Sums){first, second, lowest, highest, small, subnormal != 0};
}

/* float16's exponent bits put where float32's are, and the difference of the two biases made up by a product, which
   makes subnormal numbers normal ones. */
static void widen_half_generic(const uint16_t *restrict x, int64_t n, float *restrict wide) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = (uint32_t)(x[i] & 0x7fff) << 13;
        uint32_t sign = (uint32_t)(x[i] & 0x8000) << 16;
        uint32_t bits = bits32(float_of(magnitude) * 0x1p112f);
        bits = magnitude >= UINT32_C(0x7c00) << 13 ? magnitude | UINT32_C(0x7f800000) : bits;
        wide[i] = float_of(bits | sign);
    }
}

static void octaves32_generic(const float *x, int64_t n, double unit, float *octave) {
    for (int64_t i = 0; i < n; i++) octave[i] = octave_of((double)x[i], unit);
}

static void octaves64_generic(const double *x, int64_t n, double unit, float *octave) {
    for (int64_t i = 0; unit == 1 && i < n; i++) octave[i] = octave_of(x[i], 1);
    for (int64_t i = 0; unit != 1 && i < n; i++) octave[i] = octave_of(x[i], unit);
}

static const Kernels GENERIC = {
    "generic",        sums32_generic,  sums64_generic,  ends32_generic,    ends64_generic,    widen_half_generic,
    widen_bfloat_generic, minus32_generic, minus64_generic, histogram_generic, octaves32_generic, octaves64_generic,
};

#undef TARGET
#undef NAME
