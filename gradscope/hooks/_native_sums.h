/* What the kernels of all variants share: the sums of a block, their table, and the loops a compiler vectorises itself.

   A block is some thousand entries in float32 or float64 that lie in the first-level cache. Its sums are taken about a
   shift, in float64: Σ(x − shift) and Σ(x − shift)². They lose nothing as long as the shift is within a few standard
   deviations of the mean; `_native_block.h` sees to that. */

#ifndef GRADSCOPE_NATIVE_SUMS_H
#define GRADSCOPE_NATIVE_SUMS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BINS = 64, CHUNK = 16 };

/* How far ahead of what is read memory is asked for, in bytes. The processor looks ahead by itself, but no further than
   a page, and not while a block is counted; what lies in the caches already costs 2 % for it. */
enum { AHEAD = 12288, LINE = 64, STRIP = 32 };

static inline void ask_ahead(const void *now, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += LINE) __builtin_prefetch((const char *)now + AHEAD + line);
}

typedef struct {
    double first;  /* Σ(x − shift) */
    double second; /* Σ(x − shift)²; not finite where an entry is not */
    double lowest, highest;
    int64_t small; /* entries with |x| < tiny, zeros among them */
    int subnormal; /* whether one of them is not zero */
} Sums;

/* The ends of a block that may hold anything, of the entries that are finite; `nonfinite` says whether all are. */
typedef struct {
    double lowest, highest;
    int nonfinite;
} Ends;

/* `difference` gives the sums of x − y in float64 without a shift, entries that are equal as `small`; `subnormal` says
   whether a difference other than 0 may be below 2^-126: that needs an x below this. */
static const float MAYBE_SUBNORMAL = 0x1p-101f;

typedef struct {
    const char *name;
    void (*sums32)(const float *x, int64_t n, float shift, float tiny, Sums *sums);
    void (*sums64)(const double *x, int64_t n, double shift, double tiny, Sums *sums);
    void (*difference)(const float *x, const float *y, int64_t n, Sums *sums);
    void (*ends32)(const float *x, int64_t n, Ends *ends);
    void (*ends64)(const double *x, int64_t n, Ends *ends);
    void (*widen_half)(const uint16_t *x, int64_t n, float *wide);
    void (*widen_bfloat)(const uint16_t *x, int64_t n, float *wide);
    void (*minus32)(const float *x, const float *y, int64_t n, double *difference);
    void (*minus64)(const double *x, const double *y, int64_t n, double *difference);
    void (*histogram)(const float *x, int64_t n, int64_t *counts);
    void (*octaves32)(const float *x, int64_t n, double unit, float *octave);
    void (*octaves64)(const double *x, int64_t n, double unit, float *octave);
} Kernels;

static inline uint32_t bits32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline uint64_t bits64(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A float32 of the same bin as x/unit: the power of two below it, held between the ends of the histogram. */
static inline float octave_of(double x, double unit) {
    double magnitude = fabs(x), least = magnitude > 0 ? 0x1p-149 : 0;
    double octave = double_of(bits64(x / unit) & UINT64_C(0x7ff0000000000000));
    octave = octave > 0x1p127 ? 0x1p127 : octave;
    octave = octave < least ? least : octave;
    return (float)(magnitude <= DBL_MAX ? octave : INFINITY);
}

/* The entries that fill no vector. */
static inline void rest32(const float *x, int64_t n, float shift, float tiny, Sums *sums) {
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)shift;
        sums->first += d;
        sums->second += d * d;
        sums->lowest = x[i] < sums->lowest ? x[i] : sums->lowest;
        sums->highest = x[i] > sums->highest ? x[i] : sums->highest;
        if (fabsf(x[i]) < tiny) {
            sums->small++;
            sums->subnormal |= x[i] != 0;
        }
    }
}

static inline void rest_difference(const float *x, const float *y, int64_t n, Sums *sums) {
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)y[i];
        sums->first += d;
        sums->second += d * d;
        sums->lowest = d < sums->lowest ? d : sums->lowest;
        sums->highest = d > sums->highest ? d : sums->highest;
        sums->small += x[i] == y[i];
        sums->subnormal |= fabsf(x[i]) < MAYBE_SUBNORMAL && x[i] != y[i];
    }
}

static inline void rest64(const double *x, int64_t n, double shift, double tiny, Sums *sums) {
    for (int64_t i = 0; i < n; i++) {
        double d = x[i] - shift;
        sums->first += d;
        sums->second += d * d;
        sums->lowest = x[i] < sums->lowest ? x[i] : sums->lowest;
        sums->highest = x[i] > sums->highest ? x[i] : sums->highest;
        if (fabs(x[i]) < tiny) {
            sums->small++;
            sums->subnormal |= x[i] != 0;
        }
    }
}

#endif
