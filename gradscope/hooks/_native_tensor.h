/* One tensor: its entries in order, block by block; what is sampled of them; its row.

   A tensor is cut into segments of a fixed size, and those into blocks, whatever the number of threads: each segment's
   moments are those of its blocks in order, the tensor's those of its segments in order. */

#ifndef GRADSCOPE_NATIVE_TENSOR_H
#define GRADSCOPE_NATIVE_TENSOR_H

#include "_native_block.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum { BLOCK = 8192, SEGMENT = 1 << 17, DIMENSIONS = 64, COLUMNS = 10 };
_Static_assert(BLOCK <= 1 << 20, "the counters of a block's lanes have 32 bits");

/* A mean square of n entries is off by √((E x⁴/(E x²)² − 1)/n) of itself, and E x⁴ is at most E x² times the largest
   square: with the largest 10 times the root mean square by a sixth at most for 4,096 entries, mostly by far less. Of
   normal entries the largest of 10⁹ is 6 times. */
static const double FARTHEST = 10;
enum { FLOAT32, FLOAT64, FLOAT16, BFLOAT16, DTYPES };

static const int64_t SIZE_OF[DTYPES] = {4, 8, 2, 2};
static const double TINY_OF[DTYPES] = {0x1p-126, 0x1p-1022, 0x1p-14, 0x1p-126};

/* The entries' places: dimensions from the outermost in, strides in entries. */
typedef struct {
    int dimensions;
    int64_t shape[DIMENSIONS], strides[DIMENSIONS];
} Layout;

typedef struct {
    int64_t stride, offset;
} Lattice;

typedef struct {
    const char *address;
    const Layout *layout; /* NULL: one entry after the other */
    int64_t entries;
    int dtype;
    double *row;
    int64_t *histogram; /* or NULL */
    const char *minus;  /* or NULL; as the entries in order */
    char *copy;         /* or NULL; likewise */
    int past_caches;    /* the copy is written to memory at once: it is part of more than the caches hold */
    Lattice moments, counts;
    double unit;
} Job;

/* What a segment gave. With all entries sampled, `sampled` is unused. */
typedef struct {
    Moments all, sample;
    int64_t sampled;
    int64_t counts[BINS];
} Part;

typedef struct {
    _Alignas(64) char raw[PIECE * 8], other[PIECE * 8];
    _Alignas(64) float wide[PIECE], wide_other[PIECE], octaves[PIECE];
    _Alignas(64) double difference[PIECE], moments[PIECE], counts[PIECE];
} Buffers;

/* Entries as the kernels take them: narrow, or wide, or narrow ones and others that nobody has subtracted yet. */
typedef struct {
    const float *narrow, *minus;
    const double *wide;
    int64_t n;
} View;

/* Chunks of a lattice, gathered until they fill a buffer; `next` is that of `window`. */
typedef struct {
    int64_t stride, offset, window, next;
    char *buffer;
    int64_t held;
} Sampler;

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15; /* 2^64/1.618… */

static int aligned(const void *address, int64_t size) { return (uintptr_t)address % (uintptr_t)size == 0; }

/* Copies to where nobody reads soon. Written past the caches, memory is not read first, and what they hold stays. */
static void copy_out(const Job *job, char *to, const char *from, int64_t bytes) {
    int64_t done = 0;
#if defined(__x86_64__)
    if (job->past_caches && aligned(to, 16)) {
        for (; done + 64 <= bytes; done += 64) {
            for (int64_t at = done; at < done + 64; at += 16) {
                _mm_stream_si128((__m128i *)(void *)(to + at), _mm_loadu_si128((const __m128i *)(const void *)(from + at)));
            }
        }
        _mm_sfence(); /* before another thread is told that it is there */
    }
#endif
    memcpy(to + done, from + done, (size_t)(bytes - done));
}

static inline void copy_entries(char *to, const char *from, int64_t n, int64_t stride, int64_t size) {
    if (stride == 1) {
        memcpy(to, from, (size_t)(n * size));
    } else if (size == 4) {
        for (int64_t i = 0; i < n; i++) memcpy(to + 4 * i, from + 4 * stride * i, 4);
    } else if (size == 8) {
        for (int64_t i = 0; i < n; i++) memcpy(to + 8 * i, from + 8 * stride * i, 8);
    } else {
        for (int64_t i = 0; i < n; i++) memcpy(to + 2 * i, from + 2 * stride * i, 2);
    }
}

/* Puts n entries from number `first` on, one after the other. */
static void gather(const Job *job, int64_t first, int64_t n, char *to) {
    const Layout *at = job->layout;
    int64_t index[DIMENSIONS], size = SIZE_OF[job->dtype], place = 0, left = first;
    int inner = at->dimensions - 1;
    for (int d = inner; d >= 0; d--) {
        index[d] = left % at->shape[d];
        left /= at->shape[d];
        place += index[d] * at->strides[d];
    }
    while (n) {
        int64_t run = at->shape[inner] - index[inner];
        run = run < n ? run : n;
        copy_entries(to, job->address + place * size, run, at->strides[inner], size);
        to += run * size;
        n -= run;
        index[inner] += run;
        place += run * at->strides[inner];
        for (int d = inner; d > 0 && index[d] == at->shape[d]; d--) {
            place += at->strides[d - 1] - at->shape[d] * at->strides[d];
            index[d] = 0;
            index[d - 1]++;
        }
    }
}

static const char *raw_entries(const Job *job, int64_t first, int64_t n, char *buffer) {
    int64_t size = SIZE_OF[job->dtype];
    if (job->layout) {
        gather(job, first, n, buffer);
        return buffer;
    }
    const char *entries = job->address + first * size;
    return aligned(job->address, size) ? entries : memcpy(buffer, entries, (size_t)(n * size));
}

static const float *widened(const Kernels *use, int dtype, const void *x, int64_t n, float *buffer) {
    if (dtype == FLOAT32) return x;
    (dtype == FLOAT16 ? use->widen_half : use->widen_bfloat)(x, n, buffer);
    return buffer;
}

static View view_of(const Kernels *use, const Job *job, const char *raw, int64_t first, int64_t n, Buffers *b) {
    View view = {.n = n};
    int64_t size = SIZE_OF[job->dtype];
    const char *minus = job->minus;
    if (minus) {
        minus += first * size;
        if (!aligned(minus, size)) minus = memcpy(b->other, minus, (size_t)(n * size));
    }
    if (job->dtype == FLOAT64) {
        view.wide = (const double *)(const void *)raw;
        if (minus) {
            use->minus64(view.wide, (const double *)(const void *)minus, n, b->difference);
            view.wide = b->difference;
        }
    } else {
        view.narrow = widened(use, job->dtype, raw, n, b->wide);
        if (minus) {
            use->minus32(view.narrow, widened(use, job->dtype, minus, n, b->wide_other), n, b->difference);
            view.narrow = NULL;
            view.wide = b->difference;
        }
    }
    return view;
}

static void add_moments(const Kernels *use, View view, double tiny, Moments *total) {
    if (view.narrow) {
        block32(use, view.narrow, view.n, (float)tiny, total);
    } else {
        block64(use, view.wide, view.n, tiny, total);
    }
}

static void add_ends(const Kernels *use, View view, double tiny, Moments *total) {
    Ends ends;
    if (view.narrow) {
        use->ends32(view.narrow, view.n, &ends);
    } else {
        use->ends64(view.wide, view.n, &ends);
    }
    Moments m = NOTHING;
    if (ends.nonfinite) {
        add_moments(use, view, tiny, &m);
    } else {
        m.finite = (double)view.n;
        m.lowest = ends.lowest;
        m.highest = ends.highest;
    }
    total->finite += m.finite;
    total->nans += m.nans;
    total->infs += m.infs;
    total->lowest = m.lowest < total->lowest ? m.lowest : total->lowest;
    total->highest = m.highest > total->highest ? m.highest : total->highest;
}

static void add_counts(const Kernels *use, View view, double unit, Buffers *b, int64_t *counts) {
    if (view.narrow && unit == 1) {
        use->histogram(view.narrow, view.n, counts);
        return;
    }
    for (int64_t start = 0; start < view.n; start += PIECE) {
        int64_t n = view.n - start < PIECE ? view.n - start : PIECE;
        if (view.narrow) {
            use->octaves32(view.narrow + start, n, unit, b->octaves);
        } else {
            use->octaves64(view.wide + start, n, unit, b->octaves);
        }
        use->histogram(b->octaves, n, counts);
    }
}

/* The one chunk of a window: offset + k^2/1.618… of the stride, modulo the stride; _lattice.py says why. Unsigned: the
   products wrap where the window's number or the stride is 2^32 or more, less evenly but still within the window. */
static int64_t chunk_of(int64_t window, int64_t stride, int64_t offset) {
    uint64_t k = (uint64_t)window, turn = k * k * GOLDEN >> 32;
    int64_t within = (int64_t)(turn * (uint64_t)stride >> 32) + offset;
    return window * stride + (within < stride ? within : within - stride);
}

/* The lattice's chunks that begin from entry `first` on, which begins one. A tensor with fewer chunks than the stride is
   one window. */
static Sampler sampler(Lattice lattice, int64_t entries, int64_t first, double *buffer) {
    int64_t chunks = (entries + CHUNK - 1) / CHUNK, stride = lattice.stride < chunks ? lattice.stride : chunks;
    int64_t offset = lattice.offset % stride, from = first / CHUNK, window = from / stride;
    if (chunk_of(window, stride, offset) < from) window++;
    return (Sampler){stride, offset, window, chunk_of(window, stride, offset), (char *)buffer, 0};
}

/* A view like that one of what a sampler holds; differences it holds are wide. */
static View sample_of(const Sampler *s, View view) {
    View held = {.n = s->held};
    if (view.narrow && !view.minus) {
        held.narrow = (const float *)(const void *)s->buffer;
    } else {
        held.wide = (const double *)(const void *)s->buffer;
    }
    return held;
}

/* Takes chunks of the view, whose first entry is number `first`, until the buffer is full; says whether it is. */
static int sample(const Kernels *use, Sampler *s, View view, int64_t first) {
    while (s->next * CHUNK < first + view.n) {
        int64_t at = s->next * CHUNK - first, n = view.n - at < CHUNK ? view.n - at : CHUNK;
        if (s->held + n > PIECE) return 1;
        if (view.minus) {
            use->minus32(view.narrow + at, view.minus + at, n, (double *)(void *)s->buffer + s->held);
        } else if (view.narrow) {
            memcpy((float *)(void *)s->buffer + s->held, view.narrow + at, (size_t)n * sizeof(float));
        } else {
            memcpy((double *)(void *)s->buffer + s->held, view.wide + at, (size_t)n * sizeof(double));
        }
        s->held += n;
        s->next = chunk_of(++s->window, s->stride, s->offset);
    }
    return 0;
}

/* Adds the moments of a view whose difference nobody has taken; says whether it could: not where one is too unusual. */
static int add_difference(const Kernels *use, View view, Moments *total) {
    Sums sums;
    use->difference(view.narrow, view.minus, view.n, &sums);
    if (!isfinite(sums.second) || sums.subnormal || far_off(&sums, (double)view.n)) return 0;
    Moments m = NOTHING;
    take_sums(&m, &sums, (double)view.n, 0);
    m.zeros = sums.small;
    merge(total, &m);
    return 1;
}

/* Reads the segment from entry `first` to `last` and adds what it gives to an empty part. */
static void read_segment(const Kernels *use, const Job *job, int64_t first, int64_t last, Buffers *b, Part *part) {
    int64_t size = SIZE_OF[job->dtype];
    int all = job->moments.stride == 1, all_counted = job->histogram && job->counts.stride == 1;
    int direct = !job->layout && !job->minus && size >= 4 && aligned(job->address, size);
    int at_once = job->minus && !job->layout && job->dtype == FLOAT32 && all && !all_counted &&
                  aligned(job->address, size) && aligned(job->minus, size);
    int64_t most = direct ? BLOCK : PIECE;
    double tiny = TINY_OF[job->dtype];
    Sampler moments = {0}, counts = {0};
    if (!all) moments = sampler(job->moments, job->entries, first, b->moments);
    if (job->counts.stride > 1) counts = sampler(job->counts, job->entries, first, b->counts);
    View view = {.n = 0};
    for (int64_t at = first; at < last; at += view.n) {
        int64_t n = last - at < most ? last - at : most;
        const char *raw = raw_entries(job, at, n, b->raw);
        if (at_once) view = (View){(const float *)(const void *)raw, (const float *)(const void *)(job->minus + at * size), NULL, n};
        int done = at_once && add_difference(use, view, &part->all);
        if (!done) view = view_of(use, job, raw, at, n, b);
        if (all && !done) {
            add_moments(use, view, tiny, &part->all);
        } else if (!all) {
            add_ends(use, view, tiny, &part->all);
            while (sample(use, &moments, view, at)) {
                add_moments(use, sample_of(&moments, view), tiny, &part->sample);
                part->sampled += moments.held;
                moments.held = 0;
            }
        }
        if (all_counted) {
            add_counts(use, view, job->unit, b, part->counts);
        } else if (job->histogram) {
            while (sample(use, &counts, view, at)) {
                add_counts(use, sample_of(&counts, view), job->unit, b, part->counts);
                counts.held = 0;
            }
        }
        if (job->copy) copy_out(job, job->copy + at * size, raw, n * size); /* may be where `minus` was read */
    }
    if (moments.held) {
        add_moments(use, sample_of(&moments, view), tiny, &part->sample);
        part->sampled += moments.held;
    }
    if (counts.held) add_counts(use, sample_of(&counts, view), job->unit, b, part->counts);
}

/* The counts are used only where a histogram is asked for. */
static void clear(Part *part, const Job *job) {
    part->all = part->sample = NOTHING;
    part->sampled = 0;
    if (job->histogram) memset(part->counts, 0, sizeof part->counts);
}

static void add_part(Part *total, const Part *part, const Job *job) {
    merge(&total->all, &part->all);
    merge(&total->sample, &part->sample);
    total->sampled += part->sampled;
    for (int bin = 0; job->histogram && bin < BINS; bin++) total->counts[bin] += part->counts[bin];
}

static int64_t scaled_up(int64_t sampled, double share) { return (int64_t)rint((double)sampled * share); }

/* Whether a sample says what all entries are like: not where it held no finite one, or where its root mean square is so
   far below the largest entry that a few entries like that, which it may have missed, make most of it. */
static int is_telling(const Moments *sample, const Moments *all) {
    if (sample->finite == 0) return 0;
    double rms = hypot(sample->mean, ldexp(sqrt(sample->m2 / sample->finite), sample->exponent));
    return fmax(-all->lowest, all->highest) <= FARTHEST * rms;
}

/* Writes the row, and adds to the histogram. Returns 0 where the sample does not tell what is asked. */
static int write_row(const Job *job, const Part *part) {
    Moments m = part->all;
    if (job->moments.stride != 1 && m.finite > 0) {
        if (!is_telling(&part->sample, &m)) return 0;
        double share = (double)job->entries / (double)part->sampled;
        m.mean = part->sample.mean;
        m.m2 = part->sample.m2 * (m.finite / part->sample.finite);
        m.exponent = part->sample.exponent;
        m.zeros = scaled_up(part->sample.zeros, share);
        m.subnormals = scaled_up(part->sample.subnormals, share);
    }
    double *row = job->row;
    row[0] = (double)job->entries;
    row[1] = m.finite > 0 ? m.mean : 0;
    row[2] = m.finite > 0 ? m.m2 : 0;
    row[3] = m.finite > 0 ? m.lowest : 0;
    row[4] = m.finite > 0 ? m.highest : 0;
    row[5] = (double)m.zeros;
    row[6] = (double)m.nans;
    row[7] = (double)m.infs;
    row[8] = (double)m.subnormals;
    row[9] = m.exponent ? ldexp(1, m.exponent) : 1;
    if (job->histogram) {
        for (int bin = 0; bin < BINS; bin++) {
            if (part->counts[bin]) job->histogram[bin] += part->counts[bin];
        }
    }
    return 1;
}

static void read_tensor(const Kernels *use, const Job *job, Buffers *b);

/* Ends a tensor: its row, read once more without a sample where that one had nothing to say. */
static void finish(const Kernels *use, const Job *job, const Part *total, Buffers *b) {
    if (write_row(job, total)) return;
    Job whole = *job;
    whole.moments = (Lattice){1, 0};
    whole.copy = NULL;
    read_tensor(use, &whole, b);
}

static void read_tensor(const Kernels *use, const Job *job, Buffers *b) {
    Part total, part;
    clear(&total, job);
    if (job->entries <= SEGMENT) {
        if (job->entries) read_segment(use, job, 0, job->entries, b, &total);
    } else {
        for (int64_t first = 0; first < job->entries; first += SEGMENT) {
            int64_t last = job->entries - first < SEGMENT ? job->entries : first + SEGMENT;
            clear(&part, job);
            read_segment(use, job, first, last, b, &part);
            add_part(&total, &part, job);
        }
    }
    finish(use, job, &total, b);
}

#endif
