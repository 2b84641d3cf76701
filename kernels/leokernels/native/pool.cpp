#include "pool.h"

#include <algorithm>

constexpr int SPINS = 5000;    // some hundred microseconds: longer than what lies between two products of a step
constexpr int PATIENCE = 1000;  // spins of the caller, longer than a task, before it sleeps

// The tasks that are left of a thread's part: 24 bits of the job's number, 20 of the first, 20 of the end.
constexpr uint64_t BITS = 20, MOST = (1u << BITS) - 1;
static inline uint64_t tasks_of(uint64_t number, uint64_t first, uint64_t end) {
    return number << 2 * BITS | first << BITS | end;
}
static inline int first_of(uint64_t tasks) { return (int)(tasks >> BITS & MOST); }
static inline int end_of(uint64_t tasks) { return (int)(tasks & MOST); }

// Memory to be fetched: its address, and in the 10 bits that are free below an address of 54, how many pieces.
constexpr int64_t LINE = 64, PIECE = 16 * LINE, MOST_PIECES = 1023;

Pool::Pool(int threads) : total(threads), own(new Own[threads]) {
    for (int thread = 1; thread < threads; thread++) workers.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    stopping = true;
    wake.fetch_add(1);
    wake.notify_all();
    for (auto& worker : workers) worker.join();
}

// One task of the present job, if any is left: the next of the thread's own, else the last of another's. It is only
// taken if nothing was changed since it was looked at, so that a thread which was held up never takes one job's task
// with another's function.
bool Pool::take(int thread) {
    for (int step = 0, owner = thread; step < threads(); step++, owner = owner + 1 < threads() ? owner + 1 : 0) {
        std::atomic<uint64_t>& tasks = own[owner].tasks;
        uint64_t seen = tasks.load(std::memory_order_acquire);
        while (first_of(seen) < end_of(seen)) {
            Task function = task.load(std::memory_order_relaxed);
            void* argument = job.load(std::memory_order_relaxed);
            const uint64_t left = step ? seen - 1 : seen + (1u << BITS);
            if (tasks.compare_exchange_weak(seen, left, std::memory_order_acq_rel, std::memory_order_acquire)) {
                function(argument, step ? end_of(seen) - 1 : first_of(seen), thread);
                done.fetch_add(1, std::memory_order_seq_cst);
                if (caller_asleep.load(std::memory_order_seq_cst)) done.notify_one();
                return true;
            }
        }
    }
    return false;
}

void Pool::run(Task function, void* argument, int count) {
    if (count > (int)MOST) return run_in_turns(function, argument, count);
    if (workers.empty() || count <= 1) {
        for (int each = 0; each < count; each++) function(argument, each, 0);
        return;
    }
    // No task of the last job is left: nobody uses what is written here before there are tasks again.
    number++;
    done.store(0, std::memory_order_relaxed);
    task.store(function, std::memory_order_relaxed);
    job.store(argument, std::memory_order_relaxed);
    for (int thread = threads(); thread--;) {
        const uint64_t tasks = tasks_of(number, part(thread, count), part(thread + 1, count));
        own[thread].tasks.store(tasks, std::memory_order_seq_cst);
    }
    wake_up();
    while (take(0)) {
    }
    for (int spins = 0; spins < PATIENCE && done.load(std::memory_order_acquire) < count; spins++)
        if (!fetch_expected(0)) pause_thread();
    // A worker whose core the system gave to another process has a task still. Asleep, the caller leaves it its own
    // core; spinning or yielding, it would be waiting for the other process' time to end.
    caller_asleep.store(true, std::memory_order_seq_cst);
    for (int seen; (seen = done.load(std::memory_order_seq_cst)) < count;) done.wait(seen, std::memory_order_seq_cst);
    caller_asleep.store(false, std::memory_order_relaxed);
}

void Pool::wake_up() {
    if (!asleep.load(std::memory_order_seq_cst)) return;
    wake.fetch_add(1, std::memory_order_seq_cst);
    wake.notify_all();
}

void Pool::put_off(Task function, void* argument, int count) {
    while (help()) {
    }
    if (workers.empty()) {
        for (int each = 0; each < count; each++) function(argument, each, 0);
        return;
    }
    later_task.store(function, std::memory_order_relaxed);
    later_job.store(argument, std::memory_order_relaxed);
    later.store(tasks_of(++number, 0, count), std::memory_order_seq_cst);
    wake_up();
}

// As in `take`: a task is only taken if nothing was changed since it was looked at.
bool Pool::take_put_off(int thread) {
    uint64_t seen = later.load(std::memory_order_acquire);
    while (first_of(seen) < end_of(seen)) {
        Task function = later_task.load(std::memory_order_relaxed);
        void* argument = later_job.load(std::memory_order_relaxed);
        if (later.compare_exchange_weak(seen, seen + (1u << BITS), std::memory_order_acq_rel,
                                        std::memory_order_acquire)) {
            function(argument, first_of(seen), thread);
            return true;
        }
    }
    return false;
}

// More tasks than the bits tell, as a step of very many tokens has: so many at a time.
void Pool::run_in_turns(Task function, void* argument, int count) {
    struct Turn {
        Task function;
        void* job;
        int first;
    };
    auto call = [](void* at, int task, int thread) {
        const Turn& turn = *static_cast<Turn*>(at);
        turn.function(turn.job, turn.first + task, thread);
    };
    for (int left = count; left > 0; left -= (int)MOST) {
        Turn turn{function, argument, count - left};
        run(call, &turn, std::min(left, (int)MOST));
    }
}

void Pool::expect(int thread, const void* begin, int64_t bytes) {
    const uint64_t pieces = std::clamp(bytes / PIECE, (int64_t)0, MOST_PIECES);
    own[thread].expected.store((uint64_t)begin / LINE * LINE << 10 | pieces, std::memory_order_relaxed);
}

// One piece of what the thread expects, if any is left. That it is another's by now does no harm.
bool Pool::fetch_expected(int thread) {
    uint64_t seen = own[thread].expected.load(std::memory_order_relaxed);
    const uint64_t pieces = seen & MOST_PIECES;
    if (!pieces) return false;
    const char* begin = (const char*)(seen >> 10);
    for (int64_t at = 0; at < PIECE; at += LINE) __builtin_prefetch(begin + at, 0, 2);
    own[thread].expected.compare_exchange_strong(seen, (uint64_t)(begin + PIECE) << 10 | (pieces - 1),
                                                 std::memory_order_relaxed);
    return true;
}

bool Pool::has_tasks() const {
    auto left = [](const std::atomic<uint64_t>& tasks) {
        const uint64_t seen = tasks.load(std::memory_order_seq_cst);
        return first_of(seen) < end_of(seen);
    };
    return left(later) || std::any_of(&own[0], &own[total], [&](const Own& part) { return left(part.tasks); });
}

void Pool::work(int thread) {
    while (!stopping.load(std::memory_order_relaxed)) {
        for (int spins = 0; spins < SPINS; spins++) {
            if (take(thread) || take_put_off(thread))
                spins = 0;
            else if (!fetch_expected(thread))
                pause_thread();
        }
        uint32_t seen = wake.load(std::memory_order_seq_cst);
        asleep.fetch_add(1, std::memory_order_seq_cst);
        // A job that was put up before this thread counted as asleep has not woken it: look once more.
        if (!stopping && !has_tasks()) wake.wait(seen);
        asleep.fetch_sub(1, std::memory_order_seq_cst);
    }
}
