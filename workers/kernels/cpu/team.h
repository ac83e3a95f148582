// Work on torch's own OpenMP threads: no second pool competes with it for the cores.
#pragma once
#include <stdint.h>

extern "C" {
void GOMP_parallel(void (*task)(void*), void* argument, unsigned num_threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_num_threads();
}

struct Member {
    int index;
    int size;

    void barrier() const {
        if (size > 1) GOMP_barrier();
    }

    // This member's even share of [0, count).
    int64_t first(int64_t count) const { return count * index / size; }
    int64_t last(int64_t count) const { return count * (index + 1) / size; }
};

// Runs `body(member)` on every thread of a team and waits for all of them.
template <class Body>
void on_team(int num_threads, Body body) {
    if (num_threads <= 1) return body(Member{0, 1});
    auto task = [](void* argument) {
        (*static_cast<Body*>(argument))(Member{omp_get_thread_num(), omp_get_num_threads()});
    };
    GOMP_parallel(task, &body, unsigned(num_threads), 0);
}

// Splits [0, count) among the threads; small work stays on the caller's.
template <class Body>
void share(int num_threads, int64_t count, int64_t cost, Body body) {
    constexpr int64_t SMALL = 1 << 15;  // elements: below, waking a thread costs more than it saves
    on_team(cost < SMALL ? 1 : num_threads, [&](Member member) {
        for (int64_t i = member.first(count); i < member.last(count); i++) body(i);
    });
}
