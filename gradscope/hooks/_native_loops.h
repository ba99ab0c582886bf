/* Loops that a compiler vectorises itself; included once a variant, with TARGET and NAME(function) defined by it.

   They go by strips, so that memory is asked for in between. */

/* The ends, by the order of the bits: among numbers of one sign, larger bits are a larger |x|, and what is not finite
   is larger than all that is. So three integer extremes give both ends, and say whether there is such an entry. */
TARGET static void NAME(ends32)(const float *x, int64_t n, Ends *ends) {
    int32_t highest = INT32_MIN;
    uint32_t lowest = 0, nearest = UINT32_MAX;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = bits32(x[i]);
        highest = (int32_t)bits > highest ? (int32_t)bits : highest;
        lowest = bits > lowest ? bits : lowest;
        nearest = bits < nearest ? bits : nearest;
    }
    ends->nonfinite = highest >= INT32_C(0x7f800000) || lowest >= UINT32_C(0xff800000);
    ends->highest = float_of(highest >= 0 ? (uint32_t)highest : nearest);
    ends->lowest = float_of(lowest >> 31 ? lowest : nearest);
}

TARGET static void NAME(ends64)(const double *x, int64_t n, Ends *ends) {
    int64_t highest = INT64_MIN;
    uint64_t lowest = 0, nearest = UINT64_MAX;
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = bits64(x[i]);
        highest = (int64_t)bits > highest ? (int64_t)bits : highest;
        lowest = bits > lowest ? bits : lowest;
        nearest = bits < nearest ? bits : nearest;
    }
    ends->nonfinite = highest >= INT64_C(0x7ff0000000000000) || lowest >= UINT64_C(0xfff0000000000000);
    ends->highest = double_of(highest >= 0 ? (uint64_t)highest : nearest);
    ends->lowest = double_of(lowest >> 63 ? lowest : nearest);
}

TARGET static void NAME(widen_bfloat)(const uint16_t *restrict x, int64_t n, float *restrict wide) {
    int64_t i = 0;
    for (; i + STRIP <= n; i += STRIP) {
        ask_ahead(x + i, STRIP * sizeof *x);
        for (int j = 0; j < STRIP; j++) wide[i + j] = float_of((uint32_t)x[i + j] << 16);
    }
    for (; i < n; i++) wide[i] = float_of((uint32_t)x[i] << 16);
}

TARGET static void NAME(minus32)(const float *x, const float *y, int64_t n, double *restrict difference) {
    int64_t i = 0;
    for (; i + STRIP <= n; i += STRIP) {
        ask_ahead(x + i, STRIP * sizeof *x);
        ask_ahead(y + i, STRIP * sizeof *y);
        for (int j = 0; j < STRIP; j++) difference[i + j] = (double)x[i + j] - (double)y[i + j];
    }
    for (; i < n; i++) difference[i] = (double)x[i] - (double)y[i];
}

TARGET static void NAME(minus64)(const double *x, const double *y, int64_t n, double *restrict difference) {
    int64_t i = 0;
    for (; i + STRIP <= n; i += STRIP) {
        ask_ahead(x + i, STRIP * sizeof *x);
        ask_ahead(y + i, STRIP * sizeof *y);
        for (int j = 0; j < STRIP; j++) difference[i + j] = x[i + j] - y[i + j];
    }
    for (; i < n; i++) difference[i] = x[i] - y[i];
}
