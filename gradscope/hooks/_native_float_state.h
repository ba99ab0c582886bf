/* Subnormal numbers are numbers here, whatever torch.set_flush_denormal was told. */

#ifndef GRADSCOPE_NATIVE_FLOAT_STATE_H
#define GRADSCOPE_NATIVE_FLOAT_STATE_H

#if defined(__x86_64__)
#include <immintrin.h>
typedef unsigned FloatState;
static inline FloatState enter_default_float_state(void) {
    FloatState before = _mm_getcsr();
    _mm_setcsr(0x1f80); /* all exceptions masked, round to nearest, nothing flushed */
    return before;
}
static inline void leave_float_state(FloatState before) { _mm_setcsr(before); }
#else
#include <fenv.h>
typedef fenv_t FloatState;
static inline FloatState enter_default_float_state(void) {
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    return before;
}
static inline void leave_float_state(FloatState before) { fesetenv(&before); }
#endif

#endif
