/* gradscope.hooks._native: moments and histograms of tensors on the CPU, each entry read once.

   The module takes addresses and counts, knows neither torch nor numpy, and holds to CPython's stable ABI. What it
   owns: its arguments, and which kernels are in use. Its interface stands in `_native.pyi`. */

#define _GNU_SOURCE
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdio.h>

#include "_native_histogram.h"
#include "_native_pool.h"

#include "_native_generic.h"
#if defined(__x86_64__)
#include "_native_avx2.h"
#include "_native_avx512.h"
#endif

enum { VARIANTS = 3, WORDS = 12, WORTH_RELEASING = 1 << 14, FEW = 8, MORE_THAN_CACHES = 1 << 23 };

static const Kernels *available[VARIANTS], *in_use;
static int variants;

#if defined(__x86_64__)
#include <cpuid.h>
/* Half precision to float32 in hardware; compilers before GCC 11 do not know it by name. */
static int has_f16c(void) {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

static void find_variants(void) {
    available[variants++] = &GENERIC;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
        available[variants++] = &AVX2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vpopcntdq")) {
            available[variants++] = &AVX512;
        }
    }
#endif
    in_use = available[variants - 1];
}

/* -- arguments ------------------------------------------------------------------------------------------------- */

/* "jobs[3]: " for number 3; nothing for a job that is the only one, number -1. */
static const char *where(int64_t number, char place[32]) {
    place[0] = 0;
    if (number >= 0) snprintf(place, 32, "jobs[%lld]: ", (long long)number);
    return place;
}

/* Says in one sentence what is wrong with the job of that number; 0 if nothing is. */
static int refuse(const Job *job, int64_t number) {
    char place[32];
    if (job->entries < 0) {
        PyErr_Format(PyExc_ValueError, "%sentries is %lld; it must be 0 or more", where(number, place), (long long)job->entries);
    } else if (job->dtype < 0 || job->dtype >= DTYPES) {
        PyErr_Format(PyExc_ValueError,
                     "%sdtype is %d; it must be FLOAT32 (0), FLOAT64 (1), FLOAT16 (2) or BFLOAT16 (3)", where(number, place),
                     job->dtype);
    } else if (!job->address && job->entries) {
        PyErr_Format(PyExc_ValueError, "%saddress is 0; it must be that of %lld entries", where(number, place),
                     (long long)job->entries);
    } else if (!job->row || !aligned(job->row, 8)) {
        PyErr_Format(PyExc_ValueError, "%srow is %zd; it must be the address of %d float64", where(number, place), (intptr_t)job->row,
                     COLUMNS);
    } else if (!aligned(job->histogram, 8)) {
        PyErr_Format(PyExc_ValueError, "%shistogram is %zd; it must be 0 or the address of %d int64", where(number, place),
                     (intptr_t)job->histogram, BINS);
    } else if (job->moments.stride < 1 || job->counts.stride < 1) {
        PyErr_Format(PyExc_ValueError, "%sthe strides of moments and histogram are %lld and %lld; they must be 1 or more",
                     where(number, place), (long long)job->moments.stride, (long long)job->counts.stride);
    } else if (job->moments.offset < 0 || job->counts.offset < 0) {
        PyErr_Format(PyExc_ValueError,
                     "%sthe offsets of moments and histogram are %lld and %lld; they must be 0 or more", where(number, place),
                     (long long)job->moments.offset, (long long)job->counts.offset);
    } else if (!(job->unit > 0 && isfinite(job->unit))) {
        PyErr_Format(PyExc_ValueError, "%sunit has the bits %llx; it must be a positive finite float64", where(number, place),
                     (unsigned long long)bits64(job->unit));
    } else if (job->minus && job->minus == job->copy && job->moments.stride != 1) {
        PyErr_Format(PyExc_ValueError, "%sminus and copy are the same address, which a sample does not allow", where(number, place));
    } else {
        return 0;
    }
    return 1;
}

static int arguments(const char *name, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most) {
    if (given >= least && given <= most) return 1;
    if (least == most) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, got %zd", name, least, given);
    } else {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments, got %zd", name, least, most, given);
    }
    return 0;
}

/* -1 after an exception, which the caller asks for once, after all its arguments. */
static int64_t integer(PyObject *value) { return PyLong_AsLongLong(value); }

static void *pointer(PyObject *value) { return (void *)(intptr_t)PyLong_AsLongLong(value); }

static int small_integer(int64_t value) { return value < INT32_MIN || value > INT32_MAX ? -1 : (int)value; }

/* -- functions ------------------------------------------------------------------------------------------------- */

/* Reads jobs of so many entries in all; where that takes a while, other threads of Python run meanwhile. */
static void read_jobs(const Job *jobs, int64_t count, int64_t entries, int threads) {
    const Kernels *use = in_use;
    PyThreadState *state = entries >= WORTH_RELEASING ? PyEval_SaveThread() : NULL;
    read_all(use, jobs, count, entries, threads);
    if (state) PyEval_RestoreThread(state);
}

/* How many entries were NaN or infinite: so that nobody has to look into the row for what is mostly 0. */
static PyObject *not_finite(const Job *job) { return PyLong_FromLongLong((long long)(job->row[6] + job->row[7])); }

static const Job PLAIN = {.moments = {1, 0}, .counts = {1, 0}, .unit = 1};

static PyObject *reduce(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    if (!arguments("reduce", given, 4, 5)) return NULL;
    Job job = PLAIN;
    job.address = pointer(args[0]);
    job.entries = integer(args[1]);
    job.dtype = small_integer(integer(args[2]));
    job.row = pointer(args[3]);
    int threads = given > 4 ? small_integer(integer(args[4])) : 1;
    if (PyErr_Occurred() || refuse(&job, -1)) return NULL;
    read_jobs(&job, 1, job.entries, threads);
    return not_finite(&job);
}

static Job job_of(const int64_t *words) {
    Job job = {
        .address = (const char *)(intptr_t)words[0],
        .entries = words[1],
        .dtype = small_integer(words[2]),
        .row = (double *)(intptr_t)words[3],
        .histogram = (int64_t *)(intptr_t)words[4],
        .minus = (const char *)(intptr_t)words[5],
        .copy = (char *)(intptr_t)words[6],
        .moments = {words[7], words[8]},
        .counts = {words[9], words[10]},
        .unit = double_of((uint64_t)words[11]),
    };
    return job;
}

static PyObject *run(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    if (!arguments("run", given, 3, 3)) return NULL;
    const int64_t *table = pointer(args[0]);
    int64_t count = integer(args[1]), threads = integer(args[2]), entries = 0, copied = 0;
    if (PyErr_Occurred()) return NULL;
    if (count < 0) return PyErr_Format(PyExc_ValueError, "jobs is %lld; it must be 0 or more", (long long)count);
    if ((!table && count) || !aligned(table, 8)) {
        return PyErr_Format(PyExc_ValueError, "table is %zd; it must be the address of (%lld, %d) int64",
                            (intptr_t)table, (long long)count, WORDS);
    }
    Job few[16], *jobs = count <= 16 ? few : PyMem_Malloc((size_t)count * sizeof *jobs);
    if (!jobs) return PyErr_NoMemory();
    for (int64_t i = 0; i < count; i++) {
        jobs[i] = job_of(table + i * WORDS);
        if (refuse(&jobs[i], i)) {
            if (jobs != few) PyMem_Free(jobs);
            return NULL;
        }
        entries += jobs[i].entries;
        copied += jobs[i].copy ? jobs[i].entries * SIZE_OF[jobs[i].dtype] : 0;
    }
    for (int64_t i = 0; i < count; i++) jobs[i].past_caches = copied >= MORE_THAN_CACHES;
    read_jobs(jobs, count, entries, small_integer(threads));
    if (jobs != few) PyMem_Free(jobs);
    Py_RETURN_NONE;
}

/* Copies up to FEW entries of each tensor, from its beginning to its end, as float64. */
static PyObject *some_entries(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    if (!arguments("some_entries", given, 3, 3)) return NULL;
    const int64_t *table = pointer(args[0]);
    int64_t count = integer(args[1]);
    double *found = pointer(args[2]);
    if (PyErr_Occurred()) return NULL;
    if (count < 0) return PyErr_Format(PyExc_ValueError, "tensors is %lld; it must be 0 or more", (long long)count);
    if (((!table || !found) && count) || !aligned(table, 8) || !aligned(found, 8)) {
        return PyErr_Format(PyExc_ValueError, "table is %zd and found %zd; they must be the addresses of (%lld, 3) int64 and (%lld, %d) float64",
                            (intptr_t)table, (intptr_t)found, (long long)count, (long long)count, FEW);
    }
    FloatState before = enter_default_float_state();
    for (int64_t i = 0; i < count; i++, table += 3, found += FEW) {
        Job job = PLAIN;
        job.address = (const char *)(intptr_t)table[0];
        job.entries = table[1];
        job.dtype = small_integer(table[2]);
        job.row = found;
        if (refuse(&job, i)) {
            leave_float_state(before);
            return NULL;
        }
        int64_t apart = job.entries < FEW ? 1 : job.entries / FEW, size = SIZE_OF[job.dtype];
        for (int64_t k = 0; k < FEW && k * apart < job.entries; k++) {
            const char *entry = job.address + k * apart * size;
            _Alignas(64) float wide[64];
            if (job.dtype == FLOAT64) {
                memcpy(found + k, entry, 8);
            } else {
                _Alignas(64) char raw[64 * 4] = {0};
                memcpy(raw, entry, (size_t)size);
                found[k] = (double)*widened(in_use, job.dtype, raw, 1, wide);
            }
        }
    }
    leave_float_state(before);
    Py_RETURN_NONE;
}

/* Reads two tuples of one length; leaves out dimensions of size 1 and joins those that follow on each other. */
static int layout_of(PyObject *shape, PyObject *strides, Layout *layout, int64_t *entries) {
    Py_ssize_t dimensions = PyTuple_Size(shape), same = PyTuple_Size(strides);
    if (dimensions < 0 || same < 0) return 0;
    if (dimensions != same || dimensions > DIMENSIONS) {
        PyErr_Format(PyExc_ValueError, "shape has %zd dimensions and strides %zd; they must be of one length, at most %d",
                     dimensions, same, DIMENSIONS);
        return 0;
    }
    *entries = 1;
    layout->dimensions = 0;
    for (Py_ssize_t d = 0; d < dimensions; d++) {
        int64_t size = integer(PyTuple_GetItem(shape, d)), stride = integer(PyTuple_GetItem(strides, d));
        if (PyErr_Occurred()) return 0;
        if (size < 0 || stride < 0) {
            PyErr_Format(PyExc_ValueError, "dimension %zd has size %lld and stride %lld; both must be 0 or more", d,
                         (long long)size, (long long)stride);
            return 0;
        }
        if (size && *entries > INT64_MAX / 8 / size) {
            PyErr_Format(PyExc_ValueError, "shape has more entries than memory can");
            return 0;
        }
        *entries *= size;
        if (size == 1) continue;
        int last = layout->dimensions - 1;
        if (last >= 0 && layout->strides[last] == size * stride) {
            layout->shape[last] *= size;
            layout->strides[last] = stride;
        } else {
            layout->shape[last + 1] = size;
            layout->strides[last + 1] = stride;
            layout->dimensions++;
        }
    }
    return 1;
}

/* Whether the entries fill their memory without a gap, in whatever order of the dimensions. */
static int is_dense(const Layout *layout) {
    int outwards[DIMENSIONS];
    int64_t filled = 1;
    for (int d = 0; d < layout->dimensions; d++) {
        int at = d;
        for (; at > 0 && layout->strides[outwards[at - 1]] > layout->strides[d]; at--) outwards[at] = outwards[at - 1];
        outwards[at] = d;
    }
    for (int d = 0; d < layout->dimensions; d++) {
        if (layout->strides[outwards[d]] != filled) return 0;
        filled *= layout->shape[outwards[d]];
    }
    return 1;
}

static PyObject *reduce_strided(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    if (!arguments("reduce_strided", given, 5, 14)) return NULL;
    Layout layout;
    Job job = PLAIN;
    job.address = pointer(args[0]);
    if (!layout_of(args[1], args[2], &layout, &job.entries)) return NULL;
    job.dtype = small_integer(integer(args[3]));
    job.row = pointer(args[4]);
    if (given > 5) job.histogram = pointer(args[5]);
    if (given > 6) job.minus = pointer(args[6]);
    if (given > 7) job.copy = pointer(args[7]);
    if (given > 8) job.moments.stride = integer(args[8]);
    if (given > 9) job.moments.offset = integer(args[9]);
    if (given > 10) job.counts.stride = integer(args[10]);
    if (given > 11) job.counts.offset = integer(args[11]);
    if (given > 12) job.unit = PyFloat_AsDouble(args[12]);
    int threads = given > 13 ? small_integer(integer(args[13])) : 1;
    if (PyErr_Occurred() || refuse(&job, -1)) return NULL;
    int in_order = layout.dimensions == 0 || (layout.dimensions == 1 && layout.strides[0] == 1);
    int in_any_order = !job.minus && !job.copy; /* those lie in the order of the entries */
    if (!in_order && !(in_any_order && is_dense(&layout))) job.layout = &layout;
    read_jobs(&job, 1, job.entries, threads);
    return not_finite(&job);
}

static int set_name(PyObject *module, const Kernels *kernels) {
    in_use = kernels;
    return PyModule_AddStringConstant(module, "VARIANT", kernels->name);
}

static PyObject *set_variant(PyObject *self, PyObject *value) {
    const char *name = PyUnicode_AsUTF8AndSize(value, NULL);
    if (!name) return NULL;
    for (int i = 0; i < variants; i++) {
        if (strcmp(name, available[i]->name)) continue;
        if (set_name(self, available[i])) return NULL;
        Py_RETURN_NONE;
    }
    PyObject *names = PyObject_GetAttrString(self, "VARIANTS");
    if (names) PyErr_Format(PyExc_ValueError, "name is '%s'; this processor has the variants %R", name, names);
    Py_XDECREF(names);
    return NULL;
}

/* -- module ---------------------------------------------------------------------------------------------------- */

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL
static PyMethodDef methods[] = {
    {"reduce", FAST(reduce), "reduce(address, entries, dtype, row, threads=1)"},
    {"run", FAST(run), "run(table, jobs, threads)"},
    {"reduce_strided", FAST(reduce_strided),
     "reduce_strided(address, shape, strides, dtype, row, histogram=0, minus=0, copy=0, moment_stride=1, "
     "moment_offset=0, histogram_stride=1, histogram_offset=0, unit=1.0, threads=1)"},
    {"some_entries", FAST(some_entries), "some_entries(table, tensors, found)"},
    {"set_variant", set_variant, METH_O, "set_variant(name)"},
    {NULL, NULL, 0, NULL},
};

static int add(PyObject *module, const char *name, PyObject *value) {
    int failed = !value || PyModule_AddObjectRef(module, name, value);
    Py_XDECREF(value);
    return failed;
}

static int fill(PyObject *module) {
    if (!variants) {
        prepare_bins();
        find_variants();
    }
    PyObject *names = PyTuple_New(variants);
    for (int i = 0; names && i < variants; i++) {
        PyObject *name = PyUnicode_FromString(available[i]->name);
        if (!name || PyTuple_SetItem(names, i, name)) Py_CLEAR(names);
    }
    if (add(module, "VARIANTS", names) || set_name(module, in_use)) return -1;
    PyObject *columns = Py_BuildValue("(ssssssssss)", "count", "mean", "m2", "min", "max", "zeros", "nans", "infs",
                                      "subnormals", "scale");
    if (add(module, "COLUMNS", columns)) return -1;
    return PyModule_AddIntConstant(module, "FLOAT32", FLOAT32) || PyModule_AddIntConstant(module, "FLOAT64", FLOAT64) ||
                   PyModule_AddIntConstant(module, "FLOAT16", FLOAT16) ||
                   PyModule_AddIntConstant(module, "BFLOAT16", BFLOAT16)
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)fill}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "gradscope.hooks._native", .m_doc = "Moments and histograms of tensors on the CPU.",
    .m_size = 0,           .m_methods = methods,                .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
