/* The moments of a block, and their merge.

   Two parts merge by Chan, Golub & LeVeque (1983), eq. 2.1; always in the order of the entries, whoever computed them. */

#ifndef GRADSCOPE_NATIVE_BLOCK_H
#define GRADSCOPE_NATIVE_BLOCK_H

#include "_native_sums.h"

enum { PIECE = 2048 }; /* entries of a block that is staged in a buffer of its own */

/* Moments of the entries so far. `m2` is Σ(x − mean)²·4^−exponent; the exponent is 0 but for float64 data whose squares
   leave float64's range. */
typedef struct {
    double finite, mean, m2, lowest, highest;
    int64_t zeros, nans, infs, subnormals;
    int exponent;
} Moments;

static const Moments NOTHING = {0, 0, 0, INFINITY, -INFINITY, 0, 0, 0, 0, 0};

/* Beyond these, a square of float64, or the sum of a block of them, overflows or loses bits. */
static const double LARGE = 0x1p480, MINUTE = 0x1p-480;

static int exponent_of_both(const Moments *a, const Moments *b) {
    if (a->lowest == 0 && a->highest == 0) return b->exponent;
    if (b->lowest == 0 && b->highest == 0) return a->exponent;
    return a->exponent > b->exponent ? a->exponent : b->exponent;
}

/* Adds the moments b to a. */
static void merge(Moments *a, const Moments *b) {
    a->zeros += b->zeros;
    a->nans += b->nans;
    a->infs += b->infs;
    a->subnormals += b->subnormals;
    if (b->finite == 0) return;
    if (a->finite == 0) {
        a->mean = b->mean;
        a->m2 = b->m2;
        a->exponent = b->exponent;
    } else {
        double share = b->finite / (a->finite + b->finite);
        int k = a->exponent | b->exponent ? exponent_of_both(a, b) : 0;
        if (k == 0 && !(a->exponent | b->exponent)) {
            double delta = b->mean - a->mean;
            a->mean += delta * share;
            a->m2 += b->m2 + delta * delta * (a->finite * share);
        } else {
            double mean = ldexp(a->mean, -k), delta = ldexp(b->mean, -k) - mean;
            a->mean = ldexp(mean + delta * share, k);
            a->m2 = ldexp(a->m2, 2 * (a->exponent - k)) + ldexp(b->m2, 2 * (b->exponent - k)) +
                    delta * delta * (a->finite * share);
            a->exponent = k;
        }
    }
    a->finite += b->finite;
    a->lowest = b->lowest < a->lowest ? b->lowest : a->lowest;
    a->highest = b->highest > a->highest ? b->highest : a->highest;
}

/* Whether the squares about the shift lose more than their last bits: the mean is over eight deviations away. */
static int far_off(const Sums *sums, double n) {
    double about_mean = sums->first * sums->first / n;
    return about_mean > 64 * (sums->second - about_mean);
}

static void take_sums(Moments *m, const Sums *sums, double n, double shift) {
    double offset = sums->first / n, m2 = sums->second - sums->first * offset;
    m->finite = n;
    m->mean = shift + offset;
    m->m2 = m2 > 0 ? m2 : 0;
    m->lowest = sums->lowest;
    m->highest = sums->highest;
}

/* A shift for a block: 0, or what four of its entries have in common, where they lie close together. */
static double shift_of(double a, double b, double c, double d) {
    double lowest = fmin(fmin(a, b), fmin(c, d)), highest = fmax(fmax(a, b), fmax(c, d));
    double middle = lowest + (highest - lowest) / 2;
    return fabs(middle) > 2 * (highest - lowest) && isfinite(middle) ? middle : 0;
}

static void filter32(const Kernels *use, const float *x, int64_t n, float tiny, Moments *total);
static void filter64(const Kernels *use, const double *x, int64_t n, double tiny, Moments *total);

/* Adds the moments of a block to the total. */
static void block32(const Kernels *use, const float *x, int64_t n, float tiny, Moments *total) {
    Sums sums;
    float shift = (float)shift_of((double)x[0], (double)x[n / 4], (double)x[n / 2], (double)x[n - 1]);
    use->sums32(x, n, shift, tiny, &sums);
    if (!isfinite(sums.second)) {
        filter32(use, x, n, tiny, total);
        return;
    }
    if (far_off(&sums, (double)n)) {
        shift = (float)((double)shift + sums.first / (double)n);
        use->sums32(x, n, shift, tiny, &sums);
    }
    Moments m = NOTHING;
    take_sums(&m, &sums, (double)n, (double)shift);
    m.zeros = sums.small;
    if (sums.subnormal) {
        for (int64_t i = 0; i < n; i++) m.subnormals += fabsf(x[i]) < tiny && x[i] != 0;
        m.zeros -= m.subnormals;
    }
    merge(total, &m);
}

/* A block that is known to be finite, with a maximum whose square is, too. */
static void finite64(const Kernels *use, const double *x, int64_t n, Sums *sums, double shift, double tiny, Moments *m) {
    if (far_off(sums, (double)n)) {
        shift += sums->first / (double)n;
        use->sums64(x, n, shift, tiny, sums);
    }
    take_sums(m, sums, (double)n, shift);
}

static void block64(const Kernels *use, const double *x, int64_t n, double tiny, Moments *total) {
    Sums sums;
    double shift = shift_of(x[0], x[n / 4], x[n / 2], x[n - 1]);
    use->sums64(x, n, shift, tiny, &sums);
    double farthest = fmax(sums.highest, -sums.lowest);
    if (!isfinite(sums.second) || farthest > LARGE || (farthest < MINUTE && farthest > 0)) {
        filter64(use, x, n, tiny, total);
        return;
    }
    Moments m = NOTHING;
    m.zeros = sums.small;
    if (sums.subnormal) {
        for (int64_t i = 0; i < n; i++) m.subnormals += fabs(x[i]) < tiny && x[i] != 0;
        m.zeros -= m.subnormals;
    }
    finite64(use, x, n, &sums, shift, tiny, &m);
    merge(total, &m);
}

/* A block with entries that are not finite: they are counted, and the others put together. */
static void filter32(const Kernels *use, const float *x, int64_t n, float tiny, Moments *total) {
    float finite[PIECE];
    for (int64_t start = 0; start < n; start += PIECE) {
        int64_t end = start + PIECE < n ? start + PIECE : n, kept = 0;
        for (int64_t i = start; i < end; i++) {
            uint32_t magnitude = bits32(x[i]) & INT32_MAX;
            total->nans += magnitude > UINT32_C(0x7f800000);
            total->infs += magnitude == UINT32_C(0x7f800000);
            finite[kept] = x[i];
            kept += magnitude < UINT32_C(0x7f800000);
        }
        if (kept) block32(use, finite, kept, tiny, total);
    }
}

/* A block with entries that are not finite, or whose squares are not: scaled by a power of two, nothing overflows. */
static void filter64(const Kernels *use, const double *x, int64_t n, double tiny, Moments *total) {
    double finite[PIECE];
    for (int64_t start = 0; start < n; start += PIECE) {
        int64_t end = start + PIECE < n ? start + PIECE : n, kept = 0;
        double lowest = INFINITY, highest = -INFINITY;
        Moments m = NOTHING;
        for (int64_t i = start; i < end; i++) {
            uint64_t magnitude = bits64(x[i]) & INT64_MAX;
            m.nans += magnitude > UINT64_C(0x7ff0000000000000);
            m.infs += magnitude == UINT64_C(0x7ff0000000000000);
            if (magnitude >= UINT64_C(0x7ff0000000000000)) continue;
            m.zeros += magnitude == 0;
            m.subnormals += magnitude != 0 && fabs(x[i]) < tiny;
            lowest = x[i] < lowest ? x[i] : lowest;
            highest = x[i] > highest ? x[i] : highest;
            finite[kept++] = x[i];
        }
        if (kept) {
            double farthest = fmax(highest, -lowest);
            if (farthest > LARGE || (farthest < MINUTE && farthest > 0)) {
                frexp(farthest, &m.exponent);
                m.exponent = m.exponent > 1023 ? 1023 : m.exponent < -1000 ? -1000 : m.exponent;
            }
            double factor = ldexp(1, -m.exponent);
            for (int64_t i = 0; i < kept; i++) finite[i] *= factor;
            Sums sums;
            double shift = shift_of(finite[0], finite[kept / 4], finite[kept / 2], finite[kept - 1]);
            use->sums64(finite, kept, shift, 0, &sums);
            finite64(use, finite, kept, &sums, shift, 0, &m);
            m.mean = ldexp(m.mean, m.exponent);
            m.lowest = lowest;
            m.highest = highest;
        }
        merge(total, &m);
    }
}

#endif
