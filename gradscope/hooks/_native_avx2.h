/* Kernels for x86-64 with AVX2, FMA and F16C. */

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define NAME(function) function##_avx2
#include "_native_loops.h"

TARGET static inline double sum_avx2(__m256d v) {
    __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

/* `shifted` is a constant where this is inlined; without a shift there is nothing to subtract. */
TARGET static inline void add_sums32_avx2(const float *x, int64_t n, float shift, float tiny, int shifted, Sums *sums) {
    const __m256i no_sign = _mm256_set1_epi32(INT32_MAX), limit = _mm256_set1_epi32((int32_t)bits32(tiny));
    const __m256d about = _mm256_set1_pd((double)shift);
    __m256d first[2], second[4];
    __m256 lowest = _mm256_set1_ps(INFINITY), highest = _mm256_set1_ps(-INFINITY);
    __m256i small = _mm256_setzero_si256(), subnormal = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++) first[j / 2] = second[j] = _mm256_setzero_pd();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 2; j++) {
            const float *p = x + i + 8 * j;
            if (j == 0) ask_ahead(p, LINE);
            __m256 v = _mm256_loadu_ps(p);
            __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(p)), b = _mm256_cvtps_pd(_mm_loadu_ps(p + 4));
            if (shifted) {
                a = _mm256_sub_pd(a, about);
                b = _mm256_sub_pd(b, about);
            }
            first[0] = _mm256_add_pd(first[0], a);
            first[1] = _mm256_add_pd(first[1], b);
            second[2 * j] = _mm256_fmadd_pd(a, a, second[2 * j]);
            second[2 * j + 1] = _mm256_fmadd_pd(b, b, second[2 * j + 1]);
            lowest = _mm256_min_ps(v, lowest);
            highest = _mm256_max_ps(v, highest);
            __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(v), no_sign);
            __m256i is_small = _mm256_cmpgt_epi32(limit, magnitude);
            small = _mm256_sub_epi32(small, is_small);
            subnormal = _mm256_or_si256(subnormal, _mm256_and_si256(is_small, magnitude));
        }
    }
    float low[8], high[8];
    int32_t counts[8];
    _mm256_storeu_ps(low, lowest);
    _mm256_storeu_ps(high, highest);
    _mm256_storeu_si256((__m256i *)counts, small);
    *sums = (Sums){0, 0, INFINITY, -INFINITY, 0, 0};
    sums->first = sum_avx2(_mm256_add_pd(first[0], first[1]));
    sums->second = sum_avx2(_mm256_add_pd(_mm256_add_pd(second[0], second[1]), _mm256_add_pd(second[2], second[3])));
    for (int j = 0; j < 8; j++) {
        sums->lowest = low[j] < sums->lowest ? low[j] : sums->lowest;
        sums->highest = high[j] > sums->highest ? high[j] : sums->highest;
        sums->small += counts[j];
    }
    sums->subnormal = !_mm256_testz_si256(subnormal, subnormal);
    rest32(x + i, n - i, shift, tiny, sums);
}

TARGET static void sums32_avx2(const float *x, int64_t n, float shift, float tiny, Sums *sums) {
    if (shift == 0) {
        add_sums32_avx2(x, n, 0, tiny, 0, sums);
    } else {
        add_sums32_avx2(x, n, shift, tiny, 1, sums);
    }
}

TARGET static void difference_avx2(const float *x, const float *y, int64_t n, Sums *sums) {
    const __m256i no_sign = _mm256_set1_epi32(INT32_MAX), limit = _mm256_set1_epi32((int32_t)bits32(MAYBE_SUBNORMAL));
    __m256d first[2], second[2], lowest[2], highest[2];
    __m256 subnormal = _mm256_setzero_ps();
    int64_t small = 0;
    for (int k = 0; k < 2; k++) {
        first[k] = second[k] = _mm256_setzero_pd();
        lowest[k] = _mm256_set1_pd(INFINITY);
        highest[k] = _mm256_set1_pd(-INFINITY);
    }
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float *p = x + i, *q = y + i;
        if (i % 16 == 0) {
            ask_ahead(p, LINE);
            ask_ahead(q, LINE);
        }
        __m256 v = _mm256_loadu_ps(p), differ = _mm256_cmp_ps(v, _mm256_loadu_ps(q), _CMP_NEQ_UQ);
        __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(v), no_sign);
        small += 8 - __builtin_popcount((unsigned)_mm256_movemask_ps(differ));
        __m256 near_zero = _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, magnitude));
        subnormal = _mm256_or_ps(subnormal, _mm256_and_ps(near_zero, differ));
        for (int k = 0; k < 2; k++) {
            __m256d d = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(p + 4 * k)), _mm256_cvtps_pd(_mm_loadu_ps(q + 4 * k)));
            first[k] = _mm256_add_pd(first[k], d);
            second[k] = _mm256_fmadd_pd(d, d, second[k]);
            lowest[k] = _mm256_min_pd(d, lowest[k]);
            highest[k] = _mm256_max_pd(d, highest[k]);
        }
    }
    double low[4], high[4];
    _mm256_storeu_pd(low, _mm256_min_pd(lowest[0], lowest[1]));
    _mm256_storeu_pd(high, _mm256_max_pd(highest[0], highest[1]));
    *sums = (Sums){0, 0, INFINITY, -INFINITY, small, _mm256_movemask_ps(subnormal) != 0};
    sums->first = sum_avx2(_mm256_add_pd(first[0], first[1]));
    sums->second = sum_avx2(_mm256_add_pd(second[0], second[1]));
    for (int k = 0; k < 4; k++) {
        sums->lowest = low[k] < sums->lowest ? low[k] : sums->lowest;
        sums->highest = high[k] > sums->highest ? high[k] : sums->highest;
    }
    rest_difference(x + i, y + i, n - i, sums);
}

TARGET static inline void add_sums64_avx2(const double *x, int64_t n, double shift, double tiny, int shifted, Sums *sums) {
    const __m256d about = _mm256_set1_pd(shift), no_sign = _mm256_castsi256_pd(_mm256_set1_epi64x(INT64_MAX));
    const __m256d limit = _mm256_set1_pd(tiny);
    __m256d first[2], second[4], lowest = _mm256_set1_pd(INFINITY), highest = _mm256_set1_pd(-INFINITY);
    __m256i small = _mm256_setzero_si256();
    __m256d subnormal = _mm256_setzero_pd();
    for (int j = 0; j < 4; j++) first[j / 2] = second[j] = _mm256_setzero_pd();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        ask_ahead(x + i, 2 * LINE);
        for (int j = 0; j < 4; j++) {
            __m256d v = _mm256_loadu_pd(x + i + 4 * j), d = shifted ? _mm256_sub_pd(v, about) : v;
            first[j & 1] = _mm256_add_pd(first[j & 1], d);
            second[j] = _mm256_fmadd_pd(d, d, second[j]);
            lowest = _mm256_min_pd(v, lowest);
            highest = _mm256_max_pd(v, highest);
            __m256d magnitude = _mm256_and_pd(v, no_sign);
            __m256d is_small = _mm256_cmp_pd(magnitude, limit, _CMP_LT_OQ);
            small = _mm256_sub_epi64(small, _mm256_castpd_si256(is_small));
            subnormal = _mm256_or_pd(subnormal, _mm256_and_pd(is_small, magnitude));
        }
    }
    double low[4], high[4];
    int64_t counts[4];
    _mm256_storeu_pd(low, lowest);
    _mm256_storeu_pd(high, highest);
    _mm256_storeu_si256((__m256i *)counts, small);
    *sums = (Sums){0, 0, INFINITY, -INFINITY, 0, 0};
    sums->first = sum_avx2(_mm256_add_pd(first[0], first[1]));
    sums->second = sum_avx2(_mm256_add_pd(_mm256_add_pd(second[0], second[1]), _mm256_add_pd(second[2], second[3])));
    for (int j = 0; j < 4; j++) {
        sums->lowest = low[j] < sums->lowest ? low[j] : sums->lowest;
        sums->highest = high[j] > sums->highest ? high[j] : sums->highest;
        sums->small += counts[j];
    }
    __m256i bits = _mm256_castpd_si256(subnormal);
    sums->subnormal = !_mm256_testz_si256(bits, bits);
    rest64(x + i, n - i, shift, tiny, sums);
}

TARGET static void sums64_avx2(const double *x, int64_t n, double shift, double tiny, Sums *sums) {
    if (shift == 0) {
        add_sums64_avx2(x, n, 0, tiny, 0, sums);
    } else {
        add_sums64_avx2(x, n, shift, tiny, 1, sums);
    }
}

TARGET static void widen_half_avx2(const uint16_t *x, int64_t n, float *wide) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        if (i % 32 == 0) ask_ahead(x + i, LINE);
        _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
    }
    widen_half_generic(x + i, n - i, wide + i);
}

TARGET static void octaves32_avx2(const float *x, int64_t n, double unit, float *octave) {
    for (int64_t i = 0; i < n; i++) octave[i] = octave_of((double)x[i], unit);
}

TARGET static void octaves64_avx2(const double *x, int64_t n, double unit, float *octave) {
    for (int64_t i = 0; unit == 1 && i < n; i++) octave[i] = octave_of(x[i], 1);
    for (int64_t i = 0; unit != 1 && i < n; i++) octave[i] = octave_of(x[i], unit);
}

static const Kernels AVX2 = {
    "avx2",          sums32_avx2,       sums64_avx2,  difference_avx2, ends32_avx2,       ends64_avx2,
    widen_half_avx2, widen_bfloat_avx2, minus32_avx2, minus64_avx2,    histogram_generic, octaves32_avx2, octaves64_avx2,
};

#undef TARGET
#undef NAME
