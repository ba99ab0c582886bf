/* Kernels for x86-64 with AVX-512, as of Ice Lake and Zen 4. */

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vpopcntdq,f16c,fma")))
#define NAME(function) function##_avx512
#include "_native_loops.h"

/* `shifted` is a constant where this is inlined; without a shift there is nothing to subtract. */
TARGET static inline void add_sums32_avx512(const float *x, int64_t n, float shift, float tiny, int shifted, Sums *sums) {
    const __m512i one = _mm512_set1_epi32(1), limit = _mm512_set1_epi32((int32_t)(2 * bits32(tiny)));
    const __m512d about = _mm512_set1_pd((double)shift);
    __m512d first[4], second[4];
    __m512 lowest[2], highest[2];
    __m512i small = _mm512_setzero_si512(), subnormal = _mm512_setzero_si512();
    for (int j = 0; j < 4; j++) first[j] = second[j] = _mm512_setzero_pd();
    for (int j = 0; j < 2; j++) {
        lowest[j] = _mm512_set1_ps(INFINITY);
        highest[j] = _mm512_set1_ps(-INFINITY);
    }
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        for (int j = 0; j < 2; j++) {
            const float *p = x + i + 16 * j;
            __m512 v = _mm512_loadu_ps(p);
            ask_ahead(p, LINE);
            __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(p)), b = _mm512_cvtps_pd(_mm256_loadu_ps(p + 8));
            if (shifted) {
                a = _mm512_sub_pd(a, about);
                b = _mm512_sub_pd(b, about);
            }
            first[2 * j] = _mm512_add_pd(first[2 * j], a);
            first[2 * j + 1] = _mm512_add_pd(first[2 * j + 1], b);
            second[2 * j] = _mm512_fmadd_pd(a, a, second[2 * j]);
            second[2 * j + 1] = _mm512_fmadd_pd(b, b, second[2 * j + 1]);
            lowest[j] = _mm512_min_ps(v, lowest[j]);
            highest[j] = _mm512_max_ps(v, highest[j]);
            __m512i bits = _mm512_castps_si512(v);
            __mmask16 is_small = _mm512_cmplt_epu32_mask(_mm512_add_epi32(bits, bits), limit);
            small = _mm512_mask_add_epi32(small, is_small, small, one);
            subnormal = _mm512_mask_or_epi32(subnormal, is_small, subnormal, bits);
        }
    }
    sums->first = _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(first[0], first[1]), _mm512_add_pd(first[2], first[3])));
    sums->second =
        _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(second[0], second[1]), _mm512_add_pd(second[2], second[3])));
    sums->lowest = (double)_mm512_reduce_min_ps(_mm512_min_ps(lowest[0], lowest[1]));
    sums->highest = (double)_mm512_reduce_max_ps(_mm512_max_ps(highest[0], highest[1]));
    sums->small = _mm512_reduce_add_epi32(small);
    sums->subnormal = _mm512_test_epi32_mask(subnormal, _mm512_set1_epi32(INT32_MAX)) != 0;
    rest32(x + i, n - i, shift, tiny, sums);
}

TARGET static void sums32_avx512(const float *x, int64_t n, float shift, float tiny, Sums *sums) {
    if (shift == 0) {
        add_sums32_avx512(x, n, 0, tiny, 0, sums);
    } else {
        add_sums32_avx512(x, n, shift, tiny, 1, sums);
    }
}

TARGET static inline void add_sums64_avx512(const double *x, int64_t n, double shift, double tiny, int shifted, Sums *sums) {
    const __m512i one = _mm512_set1_epi64(1), limit = _mm512_set1_epi64((int64_t)(2 * bits64(tiny)));
    const __m512d about = _mm512_set1_pd(shift);
    __m512d first[4], second[4], lowest[2], highest[2];
    __m512i small = _mm512_setzero_si512(), subnormal = _mm512_setzero_si512();
    for (int j = 0; j < 4; j++) first[j] = second[j] = _mm512_setzero_pd();
    for (int j = 0; j < 2; j++) {
        lowest[j] = _mm512_set1_pd(INFINITY);
        highest[j] = _mm512_set1_pd(-INFINITY);
    }
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        for (int j = 0; j < 4; j++) {
            __m512d v = _mm512_loadu_pd(x + i + 8 * j), d = shifted ? _mm512_sub_pd(v, about) : v;
            ask_ahead(x + i + 8 * j, LINE);
            first[j] = _mm512_add_pd(first[j], d);
            second[j] = _mm512_fmadd_pd(d, d, second[j]);
            lowest[j & 1] = _mm512_min_pd(v, lowest[j & 1]);
            highest[j & 1] = _mm512_max_pd(v, highest[j & 1]);
            __m512i bits = _mm512_castpd_si512(v);
            __mmask8 is_small = _mm512_cmplt_epu64_mask(_mm512_add_epi64(bits, bits), limit);
            small = _mm512_mask_add_epi64(small, is_small, small, one);
            subnormal = _mm512_mask_or_epi64(subnormal, is_small, subnormal, bits);
        }
    }
    sums->first = _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(first[0], first[1]), _mm512_add_pd(first[2], first[3])));
    sums->second =
        _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(second[0], second[1]), _mm512_add_pd(second[2], second[3])));
    sums->lowest = _mm512_reduce_min_pd(_mm512_min_pd(lowest[0], lowest[1]));
    sums->highest = _mm512_reduce_max_pd(_mm512_max_pd(highest[0], highest[1]));
    sums->small = _mm512_reduce_add_epi64(small);
    sums->subnormal = _mm512_test_epi64_mask(subnormal, _mm512_set1_epi64(INT64_MAX)) != 0;
    rest64(x + i, n - i, shift, tiny, sums);
}

TARGET static void sums64_avx512(const double *x, int64_t n, double shift, double tiny, Sums *sums) {
    if (shift == 0) {
        add_sums64_avx512(x, n, 0, tiny, 0, sums);
    } else {
        add_sums64_avx512(x, n, shift, tiny, 1, sums);
    }
}

TARGET static void difference_avx512(const float *x, const float *y, int64_t n, Sums *sums) {
    const __m512i limit = _mm512_set1_epi32((int32_t)(2 * bits32(MAYBE_SUBNORMAL)));
    __m512d first[4], second[4], lowest[2], highest[2];
    __mmask16 subnormal = 0;
    int64_t small = 0;
    for (int j = 0; j < 4; j++) first[j] = second[j] = _mm512_setzero_pd();
    for (int j = 0; j < 2; j++) {
        lowest[j] = _mm512_set1_pd(INFINITY);
        highest[j] = _mm512_set1_pd(-INFINITY);
    }
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        for (int j = 0; j < 2; j++) {
            const float *p = x + i + 16 * j, *q = y + i + 16 * j;
            ask_ahead(p, LINE);
            ask_ahead(q, LINE);
            __m512 v = _mm512_loadu_ps(p);
            __m512i bits = _mm512_castps_si512(v);
            __mmask16 differ = _mm512_cmp_ps_mask(v, _mm512_loadu_ps(q), _CMP_NEQ_UQ);
            small += 16 - __builtin_popcount(differ);
            subnormal |= _mm512_mask_cmplt_epu32_mask(differ, _mm512_add_epi32(bits, bits), limit);
            for (int k = 0; k < 2; k++) {
                __m512d d = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(p + 8 * k)), _mm512_cvtps_pd(_mm256_loadu_ps(q + 8 * k)));
                first[2 * j + k] = _mm512_add_pd(first[2 * j + k], d);
                second[2 * j + k] = _mm512_fmadd_pd(d, d, second[2 * j + k]);
                lowest[k] = _mm512_min_pd(d, lowest[k]);
                highest[k] = _mm512_max_pd(d, highest[k]);
            }
        }
    }
    sums->first = _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(first[0], first[1]), _mm512_add_pd(first[2], first[3])));
    sums->second =
        _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(second[0], second[1]), _mm512_add_pd(second[2], second[3])));
    sums->lowest = _mm512_reduce_min_pd(_mm512_min_pd(lowest[0], lowest[1]));
    sums->highest = _mm512_reduce_max_pd(_mm512_max_pd(highest[0], highest[1]));
    sums->small = small;
    sums->subnormal = subnormal != 0;
    rest_difference(x + i, y + i, n - i, sums);
}

TARGET static void widen_half_avx512(const uint16_t *x, int64_t n, float *wide) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        if (i % 32 == 0) ask_ahead(x + i, LINE);
        _mm512_storeu_ps(wide + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x + i))));
    }
    widen_half_generic(x + i, n - i, wide + i);
}

/* x/unit towards zero, so that neither exponent nor finiteness changes; what is left of an entry below float32's range is
   the last bit, as in any other entry. */
TARGET static inline void store_octaves_avx512(__m512d x, __m512d unit, int divide, float *octave) {
    enum { TOWARDS_ZERO = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC };
    __m512d quotient = divide ? _mm512_div_round_pd(x, unit, TOWARDS_ZERO) : x;
    __m256i bits = _mm256_castps_si256(_mm512_cvt_roundpd_ps(quotient, TOWARDS_ZERO));
    __mmask8 nonzero = _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_NEQ_UQ);
    bits = _mm256_mask_or_epi32(bits, nonzero, bits, _mm256_set1_epi32(1));
    _mm256_storeu_si256((__m256i *)octave, bits);
}

TARGET static void octaves64_avx512(const double *x, int64_t n, double unit, float *octave) {
    const __m512d by = _mm512_set1_pd(unit);
    int64_t i = 0;
    if (unit == 1) {
        for (; i + 8 <= n; i += 8) store_octaves_avx512(_mm512_loadu_pd(x + i), by, 0, octave + i);
    } else {
        for (; i + 8 <= n; i += 8) store_octaves_avx512(_mm512_loadu_pd(x + i), by, 1, octave + i);
    }
    for (; i < n; i++) octave[i] = octave_of(x[i], unit);
}

TARGET static void octaves32_avx512(const float *x, int64_t n, double unit, float *octave) {
    const __m512d by = _mm512_set1_pd(unit);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store_octaves_avx512(_mm512_cvtps_pd(_mm256_loadu_ps(x + i)), by, 1, octave + i);
    for (; i < n; i++) octave[i] = octave_of((double)x[i], unit);
}

/* The histogram, without a table in memory: the bins of 512 entries, six bits each, are turned into six planes of 512
   bits. How many entries have all bits of a set S is the population count of the planes' intersection; 64 sets give 64
   such counts, and an inclusion and exclusion at the end (each bit: f(S) −= f(S ∪ bit)) the entries of each bin.

   The bits that `count_sets` adds up are those of two planes of 512 entries at once. */

enum { PLANES = 6, HALF = 8, STRETCH = 512 };

typedef struct {
    __m512i quarter[4]; /* `bin_of_field`, 64 bytes each */
} Table;

/* Bins of 64 entries, a byte each, in an order that is nobody's concern. */
TARGET static inline __m512i bins_avx512(const float *x, const Table *table) {
    const __m512i field = _mm512_set1_epi16(23 | 55 << 8); /* where the exponents stand in a pair of entries */
    __m512i e = _mm512_multishift_epi64_epi8(field, _mm512_loadu_si512(x));
    e = _mm512_mask_multishift_epi64_epi8(e, UINT64_C(0x0c0c0c0c0c0c0c0c), field, _mm512_loadu_si512(x + 16));
    e = _mm512_mask_multishift_epi64_epi8(e, UINT64_C(0x3030303030303030), field, _mm512_loadu_si512(x + 32));
    e = _mm512_mask_multishift_epi64_epi8(e, UINT64_C(0xc0c0c0c0c0c0c0c0), field, _mm512_loadu_si512(x + 48));
    __m512i low = _mm512_permutex2var_epi8(table->quarter[0], e, table->quarter[1]);
    __m512i high = _mm512_permutex2var_epi8(table->quarter[2], e, table->quarter[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(e), high);
}

/* mask ? a : b, bit by bit */
#define CHOOSE(mask, a, b) _mm512_ternarylogic_epi64(_mm512_set1_epi8(mask), a, b, 0xca)

TARGET static inline void planes_avx512(const float *x, const Table *table, __m512i planes[PLANES]) {
    __m512i bins[8], low[4], high[4], pairs[3][2];
    for (int j = 0; j < 8; j++) bins[j] = bins_avx512(x + 64 * j, table);
    for (int j = 0; j < 4; j++) {
        low[j] = CHOOSE(0x0f, bins[j], _mm512_slli_epi64(bins[j + 4], 4));
        high[j] = CHOOSE(0x0f, _mm512_srli_epi64(bins[j], 4), bins[j + 4]);
    }
    for (int j = 0; j < 2; j++) {
        pairs[0][j] = CHOOSE(0x33, low[j], _mm512_slli_epi64(low[j + 2], 2));
        pairs[1][j] = CHOOSE(0x33, _mm512_srli_epi64(low[j], 2), low[j + 2]);
        pairs[2][j] = CHOOSE(0x33, high[j], _mm512_slli_epi64(high[j + 2], 2));
    }
    for (int j = 0; j < 3; j++) {
        planes[2 * j] = CHOOSE(0x55, pairs[j][0], _mm512_slli_epi64(pairs[j][1], 1));
        planes[2 * j + 1] = CHOOSE(0x55, _mm512_srli_epi64(pairs[j][0], 1), pairs[j][1]);
    }
}

TARGET static inline void intersect_avx512(const __m512i planes[3], __m512i sets[HALF]) {
    sets[0] = _mm512_set1_epi64(-1);
    for (int j = 0; j < 3; j++) {
        for (int s = 0; s < 1 << j; s++) sets[s | 1 << j] = _mm512_and_si512(sets[s], planes[j]);
    }
}

TARGET static inline void count_sets_avx512(const float *x, const Table *table, __m512i counts[BINS]) {
    __m512i planes[PLANES], low[2][HALF], high[2][HALF];
    for (int j = 0; j < 2; j++) {
        planes_avx512(x + j * STRETCH, table, planes);
        intersect_avx512(planes, low[j]);
        intersect_avx512(planes + 3, high[j]);
    }
#pragma GCC unroll 8
    for (int h = 0; h < HALF; h++) {
#pragma GCC unroll 8
        for (int l = 0; l < HALF; l++) {
            __m512i a = _mm512_popcnt_epi64(_mm512_and_si512(high[0][h], low[0][l]));
            __m512i b = _mm512_popcnt_epi64(_mm512_and_si512(high[1][h], low[1][l]));
            counts[HALF * h + l] = _mm512_add_epi64(counts[HALF * h + l], _mm512_add_epi64(a, b));
        }
    }
}

/* The sums of eight vectors' lanes, a lane each. */
TARGET static inline __m512i sum_lanes_avx512(const __m512i v[8]) {
    __m512i pair[4], four[2];
    for (int j = 0; j < 4; j++) {
        __m512i a = v[2 * j], b = v[2 * j + 1];
        pair[j] = _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    for (int j = 0; j < 2; j++) {
        __m512i a = pair[2 * j], b = pair[2 * j + 1];
        four[j] = _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
    }
    return _mm512_add_epi64(_mm512_shuffle_i64x2(four[0], four[1], 0x88),
                            _mm512_shuffle_i64x2(four[0], four[1], 0xdd));
}

/* From the entries that have all bits of a set to those that have no others: bit by bit, f(S) −= f(S ∪ bit). */
TARGET static inline void exclude_avx512(__m512i sets[HALF]) {
    const __m512i lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    for (int bit = 1; bit < HALF; bit *= 2) {
        for (int h = 0; h < HALF; h++) {
            if (!(h & bit)) sets[h] = _mm512_sub_epi64(sets[h], sets[h | bit]);
        }
    }
    for (int bit = 1; bit < HALF; bit *= 2) {
        __m512i with = _mm512_or_si512(lane, _mm512_set1_epi64(bit));
        __mmask8 without = _mm512_testn_epi64_mask(lane, _mm512_set1_epi64(bit));
        for (int h = 0; h < HALF; h++) {
            sets[h] = _mm512_mask_sub_epi64(sets[h], without, sets[h], _mm512_permutexvar_epi64(with, sets[h]));
        }
    }
}

TARGET static void histogram_avx512(const float *x, int64_t n, int64_t *counts) {
    Table table;
    __m512i lanes[BINS], sets[HALF];
    int64_t i = 0, filled = 0, found[HALF];
    for (int j = 0; j < 4; j++) table.quarter[j] = _mm512_loadu_si512(bin_of_field + 64 * j);
    for (int j = 0; j < BINS; j++) lanes[j] = _mm512_setzero_si512();
    for (; i + 2 * STRETCH <= n; i += 2 * STRETCH) count_sets_avx512(x + i, &table, lanes);
    if (i < n) {
        float rest[2 * STRETCH] = {0};
        memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
        filled = i + 2 * STRETCH - n;
        count_sets_avx512(rest, &table, lanes);
    }
    for (int h = 0; h < HALF; h++) sets[h] = sum_lanes_avx512(lanes + HALF * h);
    exclude_avx512(sets);
    _mm512_storeu_si512(found, sets[0]);
    if (found[ZERO] > filled) count_subnormal(x, n, counts);
    sets[0] = _mm512_maskz_mov_epi64((__mmask8) ~(1 << ZERO | 1 << NONFINITE), sets[0]);
    for (int h = 0; h < HALF; h++) {
        __m512i sum = _mm512_add_epi64(_mm512_loadu_si512(counts + HALF * h), sets[h]);
        _mm512_storeu_si512(counts + HALF * h, sum);
    }
}

static const Kernels AVX512 = {
    "avx512",          sums32_avx512,       sums64_avx512,  difference_avx512, ends32_avx512,       ends64_avx512,
    widen_half_avx512, widen_bfloat_avx512, minus32_avx512, minus64_avx512,    histogram_avx512, octaves32_avx512, octaves64_avx512,
};

#undef TARGET
#undef NAME
