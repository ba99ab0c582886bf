/* The histogram of |x| over powers of two: which bin an exponent falls in, and the count without vectors.

   The edges are those of `gradscope.recording.HISTOGRAM_EDGES`; a test compares them. float32's subnormal numbers, and
   they alone, fall in bins 0 and 1. So the exponent field says the bin, except where it is 0: those entries are rare,
   and are looked at one by one. */

#ifndef GRADSCOPE_NATIVE_HISTOGRAM_H
#define GRADSCOPE_NATIVE_HISTOGRAM_H

#include "_native_sums.h"

enum { OCTAVES = 256, ZERO = 0, NONFINITE = 1 };

static const int16_t WIDE_EDGES[] = {-134, -126, -100, -76, -56, -46, -38};
enum { FINE_FIRST = -38, FINE_LAST = 17, FINE_BIN = 7, LAST_EDGE = 32 };

/* Bin of each exponent field of a float32. Field 0 has ZERO and 255 has NONFINITE: bins that no other field has. */
static uint8_t bin_of_field[OCTAVES];

static int bin_of_exponent(int exponent) {
    if (exponent >= LAST_EDGE) return BINS - 1;
    if (exponent >= FINE_LAST) return BINS - 2;
    if (exponent >= FINE_FIRST) return FINE_BIN + exponent - FINE_FIRST;
    int bin = 0;
    while (exponent >= WIDE_EDGES[bin]) bin++;
    return bin;
}

static void prepare_bins(void) {
    for (int field = 1; field < OCTAVES - 1; field++) bin_of_field[field] = (uint8_t)bin_of_exponent(field - 127);
    bin_of_field[0] = ZERO;
    bin_of_field[OCTAVES - 1] = NONFINITE;
}

static inline int is_subnormal(float x) { return (bits32(x) & INT32_MAX) - 1 < UINT32_C(0x7fffff); }

/* Counts the entries other than zero whose exponent field is 0. */
static void count_subnormal(const float *x, int64_t n, int64_t *counts) {
    int any = 0;
    for (int64_t i = 0; i < n; i++) any |= is_subnormal(x[i]);
    for (int64_t i = 0; any && i < n; i++) {
        if (is_subnormal(x[i])) counts[(bits32(x[i]) & INT32_MAX) >> (149 - 134) != 0]++;
    }
}

/* Counts of one call; several tables, so that an entry need not wait for the one before to be stored. */
static void histogram_generic(const float *x, int64_t n, int64_t *counts) {
    uint32_t tables[4][OCTAVES];
    memset(tables, 0, sizeof tables);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (int j = 0; j < 4; j++) tables[j][bits32(x[i + j]) >> 23 & 255]++;
    }
    for (; i < n; i++) tables[0][bits32(x[i]) >> 23 & 255]++;
    for (int field = 1; field < OCTAVES - 1; field++) {
        counts[bin_of_field[field]] +=
            (int64_t)tables[0][field] + tables[1][field] + tables[2][field] + tables[3][field];
    }
    if (tables[0][0] | tables[1][0] | tables[2][0] | tables[3][0]) count_subnormal(x, n, counts);
}

#endif
