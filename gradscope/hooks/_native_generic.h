/* Kernels in plain C, for any processor. */

#define TARGET
#define NAME(function) function##_generic
#include "_native_loops.h"

/* So many sums side by side: a compiler may not add the terms of one sum in another order, but lanes are vectors to it.
   float64 counts in float64, which any vector unit compares. */
enum { LANES = 16 };

static void sums32_generic(const float *x, int64_t n, float shift, float tiny, Sums *sums) {
    double first[LANES] = {0}, second[LANES] = {0}, about = (double)shift;
    float lowest[LANES], highest[LANES];
    int32_t small[LANES] = {0}, subnormal[LANES] = {0};
    for (int j = 0; j < LANES; j++) {
        lowest[j] = INFINITY;
        highest[j] = -INFINITY;
    }
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            float v = x[i + j];
            double d = (double)v - about;
            first[j] += d;
            second[j] += d * d;
            lowest[j] = v < lowest[j] ? v : lowest[j];
            highest[j] = v > highest[j] ? v : highest[j];
            int32_t is_small = fabsf(v) < tiny;
            small[j] += is_small;
            subnormal[j] |= is_small & (v != 0);
        }
    }
    *sums = (Sums){0, 0, INFINITY, -INFINITY, 0, 0};
    for (int j = 0; j < LANES; j++) {
        sums->first += first[j];
        sums->second += second[j];
        sums->lowest = (double)lowest[j] < sums->lowest ? (double)lowest[j] : sums->lowest;
        sums->highest = (double)highest[j] > sums->highest ? (double)highest[j] : sums->highest;
        sums->small += small[j];
        sums->subnormal |= subnormal[j] != 0;
    }
    rest32(x + i, n - i, shift, tiny, sums);
}

static void sums64_generic(const double *x, int64_t n, double shift, double tiny, Sums *sums) {
    double first[LANES] = {0}, second[LANES] = {0}, about = shift;
    double lowest[LANES], highest[LANES];
    double small[LANES] = {0}, zero[LANES] = {0};
    for (int j = 0; j < LANES; j++) {
        lowest[j] = INFINITY;
        highest[j] = -INFINITY;
    }
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            double v = x[i + j];
            double d = v - about;
            first[j] += d;
            second[j] += d * d;
            lowest[j] = v < lowest[j] ? v : lowest[j];
            highest[j] = v > highest[j] ? v : highest[j];
            small[j] += fabs(v) < tiny ? 1 : 0;
            zero[j] += v == 0 ? 1 : 0;
        }
    }
    *sums = (Sums){0, 0, INFINITY, -INFINITY, 0, 0};
    for (int j = 0; j < LANES; j++) {
        sums->first += first[j];
        sums->second += second[j];
        sums->lowest = lowest[j] < sums->lowest ? lowest[j] : sums->lowest;
        sums->highest = highest[j] > sums->highest ? highest[j] : sums->highest;
        sums->small += (int64_t)small[j];
        sums->subnormal |= small[j] > zero[j];
    }
    rest64(x + i, n - i, shift, tiny, sums);
}

static void difference_generic(const float *x, const float *y, int64_t n, Sums *sums) {
    double first[LANES] = {0}, second[LANES] = {0}, lowest[LANES], highest[LANES];
    int32_t same[LANES] = {0}, subnormal[LANES] = {0};
    for (int j = 0; j < LANES; j++) {
        lowest[j] = INFINITY;
        highest[j] = -INFINITY;
    }
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            double d = (double)x[i + j] - (double)y[i + j];
            first[j] += d;
            second[j] += d * d;
            lowest[j] = d < lowest[j] ? d : lowest[j];
            highest[j] = d > highest[j] ? d : highest[j];
            int32_t is_same = x[i + j] == y[i + j];
            same[j] += is_same;
            subnormal[j] |= (fabsf(x[i + j]) < MAYBE_SUBNORMAL) & !is_same;
        }
    }
    *sums = (Sums){0, 0, INFINITY, -INFINITY, 0, 0};
    for (int j = 0; j < LANES; j++) {
        sums->first += first[j];
        sums->second += second[j];
        sums->lowest = lowest[j] < sums->lowest ? lowest[j] : sums->lowest;
        sums->highest = highest[j] > sums->highest ? highest[j] : sums->highest;
        sums->small += same[j];
        sums->subnormal |= subnormal[j] != 0;
    }
    rest_difference(x + i, y + i, n - i, sums);
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
    "generic",          sums32_generic,       sums64_generic,  difference_generic, ends32_generic,       ends64_generic,
    widen_half_generic, widen_bfloat_generic, minus32_generic, minus64_generic,    histogram_generic, octaves32_generic, octaves64_generic,
};

#undef TARGET
#undef NAME
