// Parsers of answers that follow a grammar, moved on by threads that have nothing to do between two steps.
//
// A parser is llguidance's LlgConstraint; its functions are the caller's to name (github.com/guidance-ai/llguidance,
// parser/llguidance.h). The network's weights have displaced its tables from the processor's caches by the time that a
// token is chosen, so that moving one on takes some ten microseconds of waiting for memory: too long to be waited for by
// the thread that the rows without a grammar wait for.
#include "leonative.h"
#include "pool.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <unordered_map>

namespace {

enum { DONE = 1, STOPPED = 2, FAILED = 4 };
constexpr int PATIENCE = 1000;  // spins, longer than a parser takes to move on, before the caller sleeps

}  // namespace

// Rows whose parsers take their tokens and say what may come next.
class Follower {
public:
    Follower(Pool& pool, const LeoParsers& parsers) : pool(pool), parsers(parsers) {}

    void begin(LeoFollow* those, int count) {
        wait();
        rows = those;
        size = count;
        done.store(0, std::memory_order_relaxed);
        auto call = [](void* self, int row, int) { static_cast<Follower*>(self)->follow(row); };
        pool.put_off(call, this, count);
    }

    bool is_done() const { return done.load(std::memory_order_acquire) >= size; }

    // Of the rows that are done.
    int stopped() const {
        return (int)std::count_if(rows, rows + size, [](const LeoFollow& row) { return row.state & STOPPED; });
    }

    void wait() {
        while (done.load(std::memory_order_acquire) < size && pool.help()) {
        }
        for (int spins = 0; spins < PATIENCE && done.load(std::memory_order_acquire) < size; spins++) pause_thread();
        // The system holds up the thread that has the last one: spinning on could hold it up longer.
        for (int seen; (seen = done.load(std::memory_order_acquire)) < size;) done.wait(seen);
    }

private:
    void follow(int number) {
        LeoFollow& row = rows[number];
        LeoCommitted committed{};
        LeoAllowed allowed{};
        int32_t state = DONE | FAILED;
        if (parsers.commit(row.parser, row.token, &committed) == 0) {
            if (committed.stop)  // it was at its end before: asked again it would fail
                state = DONE | STOPPED;
            else if (parsers.mask(row.parser, &allowed) == 0)
                state = allowed.stop ? DONE | STOPPED : DONE;
        }
        if (state == DONE) std::memcpy(row.words, allowed.words, row.bytes);
        if (state & FAILED) std::memset(row.words, 0, row.bytes);  // of an answer that cannot go on nothing is allowed
        row.state = state;
        done.fetch_add(1, std::memory_order_seq_cst);
        done.notify_all();
    }

    Pool& pool;
    const LeoParsers parsers;
    LeoFollow* rows = nullptr;
    int size = 0;
    std::atomic<int> done{0};
};

// Spells texts in the tokens of a vocabulary, the longest that fits each time.
class Speller {
public:
    Speller(const char* bytes, const uint32_t* lengths, int64_t count, int64_t most) : most(most) {
        text.assign(bytes, std::accumulate(lengths, lengths + count, (size_t)0));
        const char* at = text.data();
        for (int64_t id = 0; id < count; at += lengths[id++]) {
            if (!lengths[id]) continue;
            ids.insert_or_assign(std::string_view(at, lengths[id]), (uint32_t)id);
            longest = std::max(longest, (size_t)lengths[id]);
        }
    }

    size_t spell(std::string_view given, uint32_t* out, size_t room) const {
        size_t count = 0;
        for (size_t at = 0; at < std::min(given.size(), (size_t)most);) {
            size_t length = std::min(longest, given.size() - at);
            auto found = ids.end();
            for (; length > 0 && (found = ids.find(given.substr(at, length))) == ids.end(); length--) {
            }
            if (found == ids.end()) break;
            if (count < room) out[count] = found->second;
            count++;
            at += length;
        }
        return count;
    }

private:
    const int64_t most;  // bytes after whose beginning no token begins
    std::string text;
    std::unordered_map<std::string_view, uint32_t> ids;
    size_t longest = 0;
};

extern "C" {

void* leo_follower_new(void* pool, const LeoParsers* parsers) { return new Follower(*(Pool*)pool, *parsers); }
void leo_follower_delete(void* follower) {
    ((Follower*)follower)->wait();
    delete (Follower*)follower;
}
void leo_follow(void* follower, LeoFollow* rows, int64_t count) { ((Follower*)follower)->begin(rows, (int)count); }
int leo_followed(void* at, int wait) {
    Follower& follower = *(Follower*)at;
    if (!wait && !follower.is_done()) return -1;
    follower.wait();
    return follower.stopped();
}

void* leo_speller_new(const char* bytes, const uint32_t* lengths, int64_t count, int64_t most) {
    return new Speller(bytes, lengths, count, most);
}
void leo_speller_delete(void* speller) { delete (Speller*)speller; }
size_t leo_spell(const void* speller, const uint8_t* bytes, size_t length, uint32_t* out, size_t room) {
    return ((const Speller*)speller)->spell({(const char*)bytes, length}, out, room);
}

}
