/* Threads for a page: what Clang's -fopenmp calls, as there is no OpenMP library for WebAssembly.
 *
 * A page's thread is a Worker with an instance of this module on the same memory, which calls `help` for
 * good. A parallel region is cut into parts that whoever comes takes: a helper that never starts takes
 * none, and the thread that computes alone takes all. Only that one enters regions and calls malloc.
 *
 * Calls as in LLVM's OpenMP runtime (openmp/runtime/src/kmp.h): the loops of `cpu_kernels.c` need these.
 */
#include <stdarg.h>

#define MAX_SHARED 20        /* variables that a region may share with its threads */
#define STACK_BYTES (1 << 20) /* as much as the first thread has */
#define SPINS 20000          /* looks at memory before a thread sleeps: tens of microseconds */
#define SECONDS_TO_WAIT 60   /* for a part that a helper has taken, before it counts as lost */

typedef void region(); /* its parameters: two times the part's number, then the shared variables */

static struct {
    uint64_t parts_left; /* in the lowest byte; above it, the region's number */
    uint32_t parts_done, num_helpers;
    /* What follows changes only while no part is left and all are done. */
    region *run;
    void *shared[MAX_SHARED];
    int num_shared, num_parts, num_wanted;
    int64_t first, last, next; /* of a loop whose iterations are taken one by one */
} team = {.num_wanted = 1};

#define LOAD(from) __atomic_load_n(from, __ATOMIC_ACQUIRE)
#define STORE(to, value) __atomic_store_n(to, value, __ATOMIC_RELEASE)
#define ADD_TO(to, value) __atomic_fetch_add(to, value, __ATOMIC_ACQ_REL)

/* Threads that there are, this one counted. */
EXPORT("num_threads") int num_threads(void) { return 1 + LOAD(&team.num_helpers); }

/* Where the stack of a new helper begins, from above; 0 without memory. */
EXPORT("new_stack") char *new_stack(void) {
    char *stack = aligned_alloc(16, STACK_BYTES);
    return stack ? stack + STACK_BYTES : NULL;
}

static void run_part(int part) {
    void **v = team.shared;
    uint32_t others = team.num_parts - 1;
#define V4(from) v[from], v[from + 1], v[from + 2], v[from + 3]
#define CASES(from, ...) \
    case from: team.run(&part, &part __VA_ARGS__); break; \
    case from + 1: team.run(&part, &part __VA_ARGS__, v[from]); break; \
    case from + 2: team.run(&part, &part __VA_ARGS__, v[from], v[from + 1]); break; \
    case from + 3: team.run(&part, &part __VA_ARGS__, v[from], v[from + 1], v[from + 2]); break;
    switch (team.num_shared) { /* WebAssembly calls a function with as many arguments as it has alone */
        CASES(0)
        CASES(4, , V4(0))
        CASES(8, , V4(0), V4(4))
        CASES(12, , V4(0), V4(4), V4(8))
        CASES(16, , V4(0), V4(4), V4(8), V4(12))
        default: __builtin_trap();
    }
    if (ADD_TO(&team.parts_done, 1) == others) /* the last one */
        __builtin_wasm_memory_atomic_notify((int *)&team.parts_done, 1);
}

/* Take and run a part, if one is left; whether there was one. */
static int help_once(void) {
    uint64_t now = LOAD(&team.parts_left);
    while (now & 255)
        if (__atomic_compare_exchange_n(&team.parts_left, &now, now - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            run_part((now & 255) - 1);
            return 1;
        }
    return 0;
}

/* A helper's whole life. */
EXPORT("help") void help(void) {
    ADD_TO(&team.num_helpers, 1);
    for (int idle = 0;; idle = help_once() ? 0 : idle + 1)
        if (idle > SPINS) {
            uint64_t now = LOAD(&team.parts_left);
            if (!(now & 255)) __builtin_wasm_memory_atomic_wait64((long long *)&team.parts_left, now, -1);
            idle = 0;
        }
}

/* --- what the compiler calls; `where` is a place in the source, and says nothing here ---------------------- */

int __kmpc_global_thread_num(void *where) { return 0; } /* outside of regions */

void __kmpc_push_num_threads(void *where, int thread, int wanted) { team.num_wanted = wanted; }

void __kmpc_fork_call(void *where, int num_shared, region *run, ...) {
    if (num_shared >= MAX_SHARED || team.num_wanted > 255) __builtin_trap();
    va_list shared;
    va_start(shared, run);
    for (int i = 0; i < num_shared; i++) team.shared[i] = va_arg(shared, void *);
    va_end(shared);
    team.run = run, team.num_shared = num_shared, team.num_parts = team.num_wanted, team.next = 0;
    STORE(&team.parts_done, 0);
    STORE(&team.parts_left, ((team.parts_left >> 8) + 1) << 8 | team.num_parts);
    if (team.num_parts > 1) __builtin_wasm_memory_atomic_notify((int *)&team.parts_left, team.num_parts - 1);
    while (help_once()) {}
    uint32_t done;
    for (int waits = -SPINS; (done = LOAD(&team.parts_done)) < (uint32_t)team.num_parts; waits++) {
        if (waits >= 0) __builtin_wasm_memory_atomic_wait32((int *)&team.parts_done, done, 1000000000);
        if (waits > SECONDS_TO_WAIT) __builtin_trap(); /* rather than wait for ever */
    }
}

/* A region that its `if` leaves to one thread. */
void __kmpc_serialized_parallel(void *where, int thread) { team.num_parts = 1; }
void __kmpc_end_serialized_parallel(void *where, int thread) {}

/* schedule(static): from all iterations, first to last, to those of a part. */
#define STATIC_INIT(name, number) \
    void name(void *where, int part, int schedule, int *is_last, number *first, number *last, number *stride, \
              number step, number chunk) { \
        number count = (*last - *first) / step + 1, begin = *first; \
        *first = begin + count * part / team.num_parts * step; \
        *last = begin + (count * (part + 1) / team.num_parts - 1) * step; \
        *is_last = part == team.num_parts - 1; \
    }
STATIC_INIT(__kmpc_for_static_init_8, int64_t)
STATIC_INIT(__kmpc_for_static_init_8u, uint64_t)
void __kmpc_for_static_fini(void *where, int part) {}

/* schedule(dynamic): one iteration at a time, whose step is 1. */
void __kmpc_dispatch_init_8(void *where, int part, int schedule, int64_t first, int64_t last, int64_t step,
                            int64_t chunk) {
    STORE(&team.first, first), STORE(&team.last, last); /* the same from all parts */
}

int __kmpc_dispatch_next_8(void *where, int part, int *is_last, int64_t *first, int64_t *last, int64_t *step) {
    *first = *last = LOAD(&team.first) + ADD_TO(&team.next, 1);
    *is_last = *last == LOAD(&team.last), *step = 1;
    return *last <= LOAD(&team.last);
}

void __kmpc_dispatch_deinit(void *where, int part) {}
