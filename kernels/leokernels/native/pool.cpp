#include "pool.h"

static inline void pause_thread() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

constexpr int SPINS = 5000;    // some hundred microseconds: longer than what lies between two products of a step
constexpr int PATIENCE = 1000;  // spins of the caller, longer than a task, before it sleeps

static inline uint32_t number_of(uint64_t ticket) { return (uint32_t)(ticket >> 32); }
static inline int task_of(uint64_t ticket) { return (int)(uint32_t)ticket; }

Pool::Pool(int threads) {
    for (int thread = 1; thread < threads; thread++) workers.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    stopping = true;
    wake.fetch_add(1);
    wake.notify_all();
    for (auto& worker : workers) worker.join();
}

// One task of the present job, if any is left. A ticket is only taken if nothing was changed since it was looked at, so
// that a thread which was held up never takes one job's task with another's function.
bool Pool::take(int thread) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    for (;;) {
        Task function = task.load(std::memory_order_relaxed);
        void* argument = job.load(std::memory_order_relaxed);
        int tasks = count.load(std::memory_order_relaxed);
        if (task_of(seen) >= tasks) return false;
        if (ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            function(argument, task_of(seen), thread);
            done.fetch_add(1, std::memory_order_seq_cst);
            if (caller_asleep.load(std::memory_order_seq_cst)) done.notify_one();
            return true;
        }
    }
}

void Pool::run(Task function, void* argument, int tasks) {
    if (workers.empty() || tasks <= 1) {
        for (int number = 0; number < tasks; number++) function(argument, number, 0);
        return;
    }
    // Until the new ticket is out, the old one has no task left: nobody uses what is written here.
    uint32_t number = number_of(ticket.load(std::memory_order_relaxed)) + 1;
    ticket.store((uint64_t)number << 32 | 0x7FFFFFFFu, std::memory_order_seq_cst);
    done.store(0, std::memory_order_relaxed);
    task.store(function, std::memory_order_relaxed);
    job.store(argument, std::memory_order_relaxed);
    count.store(tasks, std::memory_order_relaxed);
    ticket.store((uint64_t)(number + 1) << 32, std::memory_order_seq_cst);
    if (asleep.load(std::memory_order_seq_cst)) {
        wake.fetch_add(1, std::memory_order_seq_cst);
        wake.notify_all();
    }
    while (take(0)) {
    }
    for (int spins = 0; spins < PATIENCE && done.load(std::memory_order_acquire) < tasks; spins++) pause_thread();
    // A worker whose core the system gave to another process has a task still. Asleep, the caller leaves it its own
    // core; spinning or yielding, it would be waiting for the other process' time to end.
    caller_asleep.store(true, std::memory_order_seq_cst);
    for (int seen; (seen = done.load(std::memory_order_seq_cst)) < tasks;) done.wait(seen, std::memory_order_seq_cst);
    caller_asleep.store(false, std::memory_order_relaxed);
}

void Pool::work(int thread) {
    while (!stopping.load(std::memory_order_relaxed)) {
        int spins = 0;
        while (spins < SPINS) {
            if (take(thread)) {
                spins = 0;
            } else {
                pause_thread();
                spins++;
            }
        }
        uint32_t seen = wake.load(std::memory_order_seq_cst);
        asleep.fetch_add(1, std::memory_order_seq_cst);
        // A job that was put up before this thread counted as asleep has not woken it: look once more.
        uint64_t now = ticket.load(std::memory_order_seq_cst);
        if (task_of(now) >= count.load(std::memory_order_seq_cst) && !stopping) wake.wait(seen);
        asleep.fetch_sub(1, std::memory_order_seq_cst);
    }
}
