/* Many tensors at once, on one thread or several.

   The threads are made when first needed and stay; a child process starts with none. They block every signal and touch
   nothing of Python's, so that they may still wait when the interpreter ends. */

#ifndef GRADSCOPE_NATIVE_POOL_H
#define GRADSCOPE_NATIVE_POOL_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "_native_float_state.h"
#include "_native_tensor.h"

enum { MOST_THREADS = 64 };
static const int64_t WORTH_SHARING = 1 << 18;

static _Thread_local Buffers buffers;

/* A whole tensor of one segment, or a segment of a larger one with its part. */
typedef struct {
    const Job *job;
    int64_t first;
    Part *part;
} Task;

typedef struct {
    const Kernels *use;
    const Task *tasks;
    int64_t count;
    atomic_llong next;
} Batch;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    Batch *batch;
    unsigned long long turn;
    int threads, wanted, active, busy, watching_forks;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static void forget_threads(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.batch = NULL;
    pool.threads = pool.wanted = pool.active = pool.busy = 0;
}

static void work(Batch *batch) {
    FloatState before = enter_default_float_state();
    for (;;) {
        int64_t number = atomic_fetch_add(&batch->next, 1);
        if (number >= batch->count) break;
        const Task *task = &batch->tasks[number];
        const Job *job = task->job;
        if (task->part) {
            int64_t last = job->entries - task->first < SEGMENT ? job->entries : task->first + SEGMENT;
            clear(task->part, job);
            read_segment(batch->use, job, task->first, last, &buffers, task->part);
        } else {
            read_tensor(batch->use, job, &buffers);
        }
    }
    leave_float_state(before);
}

static void *serve(void *unused) {
    (void)unused;
    unsigned long long seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.turn == seen || !pool.batch || pool.wanted == 0) {
            seen = pool.turn;
            pthread_cond_wait(&pool.wake, &pool.lock);
        }
        seen = pool.turn;
        Batch *batch = pool.batch;
        pool.wanted--;
        pool.active++;
        pthread_mutex_unlock(&pool.lock);
        work(batch);
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0) pthread_cond_signal(&pool.done);
    }
    return NULL;
}

/* Makes threads until there are `wanted`, or the system gives no more. */
static void grow_pool(int wanted) {
    sigset_t all, before;
    pthread_attr_t attributes;
    if (!pool.watching_forks) pool.watching_forks = !pthread_atfork(NULL, NULL, forget_threads);
    if (!pool.watching_forks || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    while (pool.threads < wanted && !pthread_create(&thread, &attributes, serve, NULL)) pool.threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* Works on the batch with up to `helpers` more threads; alone if another caller has the pool. */
static void work_together(Batch *batch, int helpers) {
    pthread_mutex_lock(&pool.lock);
    int mine = !pool.busy;
    if (mine) {
        pool.busy = 1;
        grow_pool(helpers);
        pool.batch = batch;
        pool.wanted = helpers;
        pool.turn++;
        pthread_cond_broadcast(&pool.wake);
    }
    pthread_mutex_unlock(&pool.lock);
    work(batch);
    if (!mine) return;
    pthread_mutex_lock(&pool.lock);
    pool.batch = NULL;
    while (pool.active) pthread_cond_wait(&pool.done, &pool.lock);
    pool.busy = 0;
    pthread_mutex_unlock(&pool.lock);
}

static int64_t segments_of(const Job *job) { return job->entries > SEGMENT ? (job->entries - 1) / SEGMENT + 1 : 1; }

/* Reads all jobs with up to `threads` threads. Returns 0 if there is no memory to share the work out. */
static int read_shared(const Kernels *use, const Job *jobs, int64_t count, int threads) {
    int64_t tasks = 0, parts = 0;
    for (int64_t i = 0; i < count; i++) {
        tasks += segments_of(&jobs[i]);
        parts += segments_of(&jobs[i]) > 1 ? segments_of(&jobs[i]) : 0;
    }
    Task *list = malloc((size_t)tasks * sizeof *list);
    Part *part = malloc((size_t)(parts ? parts : 1) * sizeof *part), *next = part;
    if (list && part) {
        Task *task = list;
        for (int64_t i = 0; i < count; i++) {
            int64_t segments = segments_of(&jobs[i]);
            for (int64_t s = 0; s < segments; s++) *task++ = (Task){&jobs[i], s * SEGMENT, segments > 1 ? next++ : NULL};
        }
        Batch batch = {use, list, tasks, 0};
        int most = threads < MOST_THREADS ? threads : MOST_THREADS;
        work_together(&batch, (tasks < most ? (int)tasks : most) - 1);
        FloatState before = enter_default_float_state();
        next = part;
        for (int64_t i = 0; i < count; i++) {
            int64_t segments = segments_of(&jobs[i]);
            if (segments == 1) continue;
            Part total;
            clear(&total, &jobs[i]);
            for (int64_t s = 0; s < segments; s++) add_part(&total, next++, &jobs[i]);
            finish(use, &jobs[i], &total, &buffers);
        }
        leave_float_state(before);
    }
    int shared = list && part;
    free(list);
    free(part);
    return shared;
}

static void read_alone(const Kernels *use, const Job *jobs, int64_t count) {
    FloatState before = enter_default_float_state();
    for (int64_t i = 0; i < count; i++) read_tensor(use, &jobs[i], &buffers);
    leave_float_state(before);
}

static void read_all(const Kernels *use, const Job *jobs, int64_t count, int64_t entries, int threads) {
    if (threads > 1 && entries >= WORTH_SHARING && read_shared(use, jobs, count, threads)) return;
    read_alone(use, jobs, count);
}

#endif
